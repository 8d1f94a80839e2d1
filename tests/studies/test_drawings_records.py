"""Figures of records: what is drawn is what the records say, over the seeds, in a table's unit."""

import numpy as np
import pyarrow as pa
import pytest
from drawing_helpers import by_name, figures, grid, judged, record
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from attacks.records import write_records
from interpret.sensitivity import NAMES
from studies.drawings.common import level

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(SHARES)
def test_a_level_is_mean_and_deviation_in_per_cent(values):
    found = level([record("clean", value) for value in values])
    assert found is not None
    assert (found.seeds, found.unit) == (len(values), "%")
    assert found.value == pytest.approx(100 * np.mean(values))
    reach = 100 * np.std(values, ddof=1) if len(values) > 1 else 2.0
    assert (found.value - found.low, found.high - found.value) == pytest.approx((reach, reach))


def test_a_mean_keeps_its_unit_and_nothing_is_no_level():
    found = level([record("distance", 0.25, unit="l2")])
    assert found is not None
    assert found.unit == "l2"
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.23, 0.27))
    assert level([]) is None
    assert level([record("clean", float("nan"))]) is None


@pytest.fixture
def accuracies(tmp_path):
    """Runs under three seeds: KD rises with T, plain lies still."""
    found = grid(tmp_path, axes={"T": [1, 10, 40]})
    values = {}
    for planned in found.cells.values():
        place, seed = planned.cell.axes.get("T"), planned.cell.seed
        value = 0.5 if place is None else 0.3 + place / 100 + seed * place / 1000
        values.setdefault(place, []).append(100 * value)
        judged(planned, [record("clean", 0.9), record("PGD-20", value), record("PGD-20", 0.11, model="teacher")])
    return found, values


def test_lines_are_means_with_bands_over_the_seeds(accuracies):
    found, values = accuracies
    runs = [{"run": "KD at {T}", "label": "KD", "published": {"PGD-20": {10: 44.5}}}, "plain"]
    (drawn,) = figures(found, kind="lines", x="T", metric=["clean", "PGD-20"], runs=runs, axis="temperature")
    above, below = drawn.figure.axes
    curve, published, still = below.get_lines()
    means = [np.mean(values[place]) for place in (1, 10, 40)]
    np.testing.assert_allclose(curve.get_xydata(), list(zip((1, 10, 40), means, strict=True)))
    np.testing.assert_allclose(published.get_xydata(), [[10, 44.5]])
    assert published.get_markerfacecolor() == "none"
    np.testing.assert_allclose(still.get_xydata(), [[1, 50], [40, 50]])
    band = below.collections[0].get_paths()[0].vertices
    for place, mean in zip((1, 10, 40), means, strict=True):
        ends = sorted({round(y, 6) for x, y in band if x == place})
        deviation = np.std(values[place], ddof=1)
        np.testing.assert_allclose([ends[0], ends[-1]], [mean - deviation, mean + deviation], atol=1e-5)
    assert below.get_xscale() == "log"  # 1 to 40
    assert (above.get_ylabel(), below.get_xlabel()) == ("clean, %", "temperature")
    assert f"KD from {means[0]:.1f} at 1 to {means[2]:.1f} % at 40" in drawn.alt
    assert drawn.caption.startswith("Mean over 3 seeds; band: one standard deviation.")
    assert "published" in drawn.caption


def test_lines_of_the_teacher(accuracies):
    (drawn,) = figures(accuracies[0], kind="lines", x="T", metric="PGD-20", runs="KD at {T}", model="teacher")
    np.testing.assert_allclose(drawn.figure.axes[0].get_lines()[0].get_ydata(), [11, 11, 11])


def test_a_metric_that_no_run_has_is_told_and_leaves_no_panel(accuracies):
    (drawn,) = figures(accuracies[0], kind="lines", x="T", metric=["clean", "AutoAttack"], runs="KD at {T}")
    (ax,) = drawn.figure.axes
    assert ax.get_ylabel() == "clean, %"
    assert drawn.caption.endswith("No run has AutoAttack.")


def test_lines_go_over_numbers_that_runs_name(tmp_path):
    found = grid(
        tmp_path, axes={"T": [10, 40], "kind": ["a", "b"]}, runs=[{"name": "of {kind}", "set": {"k": "{kind}"}}]
    )
    with pytest.raises(ValueError, match="a figure goes over 'T', its runs name kind"):
        figures(found, kind="lines", x="T", metric="clean", runs="of {kind}")
    with pytest.raises(ValueError, match="kind has 'a' among its values: draw bars"):
        figures(found, kind="lines", x="kind", metric="clean", runs="of {kind}")


def test_many_lines_can_be_told_apart(tmp_path):
    names = [f"n{number}" for number in range(20)]
    runs = [{"name": "{name}, T = {T}", "over": {"name": names}, "set": {"model.name": "{name}", "model.T": "{T}"}}]
    found = grid(tmp_path, runs=runs, seeds=[0])
    for number, planned in enumerate(found.cells.values()):
        judged(planned, [record("clean", number / 50)])
    said = {"runs": "{name}, T = {T}", "over": {"name": names}}
    (drawn,) = figures(found, kind="lines", x="T", metric="clean", **said)
    lines = drawn.figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines) == 20
    assert [line.get_label() for line in lines] == names  # "T = {T}" is what goes across
    assert "20 lines, 0.0 to 78.0 %" in drawn.alt


def test_bars_whiskers_and_numbers(accuracies):
    found, values = accuracies
    (drawn,) = figures(found, kind="bars", metric=["clean", "PGD-20"], runs=["plain", "KD at {T}"])
    (ax,) = drawn.figure.axes
    clean, attacked = (group for group in ax.containers if hasattr(group, "patches"))
    np.testing.assert_allclose([bar.get_width() for bar in clean], [90] * 4)
    means = [np.mean(values[place]) for place in (None, 1, 10, 40)]
    np.testing.assert_allclose([bar.get_width() for bar in attacked], means)
    assert [text.get_text() for text in ax.texts[4:]] == [f"{mean:.1f}" for mean in means]
    whiskers = ax.collections[1].get_segments()
    deviations = [np.std(values[place], ddof=1) for place in (None, 1, 10, 40)]
    np.testing.assert_allclose([(end - start)[0] / 2 for start, end in whiskers], deviations, atol=1e-9)
    assert "PGD-20: plain 50.0, KD at 1 31.1, KD at 10 41.0, KD at 40 74.0 %." in drawn.alt


def test_many_bars_come_in_parts(tmp_path):
    runs = [{"name": "KD at {T}", "set": {"model.temperature": "{T}"}}]
    found = grid(tmp_path, axes={"T": list(range(1, 51))}, runs=runs, seeds=[0])
    for planned in found.cells.values():
        judged(planned, [record("clean", planned.cell.axes["T"] / 100)])
    made = figures(found, kind="bars", metric="clean", runs="KD at {T}")
    widths = [bar.get_width() for drawn in made for bar in drawn.figure.axes[0].containers[0]]
    np.testing.assert_allclose(widths, range(1, 51))
    assert [drawn.caption.partition(" One")[0] for drawn in made] == ["Part 1 of 2.", "Part 2 of 2."]
    assert len({tuple(drawn.figure.axes[0].get_xlim()) for drawn in made}) == 1


def test_bars_of_two_units_share_no_axis(tmp_path):
    found = grid(tmp_path)
    for planned in by_name(found, "plain"):
        judged(planned, [record("clean", 0.5), record("distance", 0.5, unit="l2")])
    with pytest.raises(ValueError, match="clean, distance have the units %, l2: draw a figure each"):
        figures(found, kind="bars", metric=["clean", "distance"], runs="plain")


def test_security_curves_begin_with_clean_images(tmp_path):
    found = grid(tmp_path)
    radii = {"2/255": 0.6, "8/255": 0.2}
    for planned in by_name(found, "plain"):
        shift = 0.01 * planned.cell.seed
        points = [record(f"PGD over eps: {eps}", v + shift, threat=f"linf {eps}") for eps, v in radii.items()]
        steps = [record(f"PGD over steps: {k}", 0.5 / k, threat="linf 8/255") for k in (1, 10, 100)]
        judged(planned, [record("clean", 0.9 + shift), *points, *steps])
    (drawn,) = figures(found, kind="security", curve="PGD over eps", runs=["plain", "KD at {T}"])
    (line,) = drawn.figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[0, 91], [2 / 255, 61], [8 / 255, 21]])
    labels = [label.get_text() for label in drawn.figure.axes[0].get_xticklabels()]
    assert {"0/255", "4/255", "8/255"} <= set(labels)
    assert "from 91.0 at 0 to 21.0 %" in drawn.alt
    (drawn,) = figures(found, kind="security", curve="PGD over steps", runs=["plain", "KD at {T}"])
    (line,) = drawn.figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[1, 50], [10, 5], [100, 0.5]])
    assert drawn.figure.axes[0].get_xlabel() == "steps (linf 8/255)"
    assert "Left out: KD at 10, KD at 40 (not run)." in drawn.caption
    with pytest.raises(ValueError, match="'PGD-20 over eps', got 'PGD'"):
        figures(found, kind="security", curve="PGD", runs="plain")


def test_sensitivity_is_the_mean_histogram_of_the_seeds(tmp_path):
    found = grid(tmp_path)
    drawn_shares = {}
    for planned in by_name(found, "plain"):
        counts = np.random.default_rng(planned.cell.seed).multinomial(200, np.full(10, 0.1))
        drawn_shares[planned.cell.seed] = counts / 200
        named = zip(NAMES, counts / 200, strict=True)
        judged(planned, [record(f"amplitude of probabilities {name}", share, 200) for name, share in named])
    (drawn,) = figures(found, kind="sensitivity", runs=["KD at {T}", "plain"])
    (ax,) = drawn.figure.axes
    expected = 100 * np.mean(list(drawn_shares.values()), axis=0)
    np.testing.assert_allclose([bar.get_height() for bar in ax.containers[0]], expected)
    assert "200 images, 3 seeds" in drawn.caption
    assert f"most ({expected.max():.0f} %) at {NAMES[expected.argmax()]}, {expected[0]:.0f} % below 1e-40" in drawn.alt


def test_adherence_has_floor_and_spread(tmp_path):
    found = grid(tmp_path)
    rng = np.random.default_rng(0)
    images = []
    for planned in by_name(found, "plain"):
        values = rng.uniform(0.4, 0.8, 50)
        values[0] = np.nan
        images.append(values)
        records = [record("adherence/Saliency/SSIM", np.nanmean(values), unit="similarity")]
        records.append(record("adherence/Saliency/SSIM/floor", 0.3, unit="similarity"))
        folder = judged(planned, records)
        (folder / "outcomes").mkdir()
        columns = {"index": list(range(50)), "Saliency/SSIM/pair": values}
        parquet.write_table(pa.table(columns), folder / "outcomes" / "adherence-student-best.parquet")
    methods = ["Saliency", "Grad-CAM"]
    (drawn,) = figures(found, kind="adherence", method=methods, measure="SSIM", runs=["plain", "KD at {T}"])
    wide, half, *_, floor = drawn.figure.axes[0].get_lines()
    told = np.concatenate(images)
    np.testing.assert_allclose(wide.get_xdata(), np.nanpercentile(told, [5, 95]))
    np.testing.assert_allclose(half.get_xdata(), np.nanpercentile(told, [25, 75]))
    assert list(floor.get_xdata()) == [0.3, 0.3]
    mean = np.mean([np.nanmean(values) for values in images])
    assert f"Saliency: plain {mean:.2f} above a floor of 0.30; 1 of 1 clearly above their floor." in drawn.alt
    assert "Grad-CAM: no figures yet." in drawn.alt


@pytest.fixture
def corrupted(tmp_path):
    """Two seeds of two runs on two corruptions; the teacher is 10 points better."""
    found = grid(tmp_path, seeds=[0, 1])
    for planned in [*by_name(found, "plain"), *by_name(found, "KD at 10")]:
        base = 0.5 + 0.02 * planned.cell.seed + 0.1 * (planned.cell.name == "plain")
        named = {
            f"{kind} {s}": base - 0.05 * s - 0.1 * (kind == "fog") for kind in ("fog", "snow_storm") for s in (1, 3)
        }
        said = {"clean": base + 0.3, **named, "severity 1": 0.99, "fog": 0.99}
        folder = judged(planned, [record(f"C-like: {metric}", value) for metric, value in said.items()])
        if planned.cell.name == "plain":
            write_records(folder, [record(f"C-like: {m}", v + 0.1, model="teacher") for m, v in said.items()])
    return found


def test_corruptions_beside_the_teacher(corrupted):
    alone, both = figures(corrupted, kind="corruptions", runs=["KD at 10", "plain"])
    (ax,) = alone.figure.axes
    np.testing.assert_allclose(ax.get_images()[0].get_array(), [[81, 36, 26], [81, 46, 36]])
    accuracy, gap = both.figure.axes
    np.testing.assert_allclose(accuracy.get_images()[0].get_array(), [[91, 46, 36], [91, 56, 46]])
    np.testing.assert_allclose(gap.get_images()[0].get_array(), -10)
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["fog", "snow storm"]
    assert "36.0 to 91.0 %; worst under fog at severity 3. Minus its teacher's: -10.0" in both.alt


def test_corruptions_of_all_runs_in_one(corrupted):
    (drawn,) = figures(corrupted, kind="corruptions", severities="mean", runs=["KD at {T}", "plain"])
    np.testing.assert_allclose(drawn.figure.axes[0].get_images()[0].get_array(), [[81, 31, 41], [91, 41, 51]])
    assert "On average plain keeps most (46.0 %), KD at 10 least (36.0 %)." in drawn.alt
    assert drawn.caption.endswith("Left out: KD at 40 (not run).")
    with pytest.raises(ValueError, match="severities is each or mean, got 'all'"):
        figures(corrupted, kind="corruptions", severities="all", runs="plain")
