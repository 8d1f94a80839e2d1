"""An entry under a grid's figures: what it stands for, what is refused, and what a figure says that it lacks."""

import re
from inspect import Parameter, signature

import numpy as np
import pytest
from drawing_helpers import by_name, figures, grid, judged, record, trained
from matplotlib.image import imsave
from report_helpers import fail

import studies.drawings
from studies.drawings import KINDS, check, draw, style
from studies.gather import Results

BARS = {"kind": "bars", "metric": "clean", "runs": ["KD at {T}", "plain"]}


def test_the_docstring_has_every_kind_and_argument():
    """It is what authors of grids read."""
    rows = [line.split() for line in (studies.drawings.__doc__ or "").splitlines()]
    for name, kind in KINDS.items():
        start = next(number for number, row in enumerate(rows) if row[:1] == [name])
        end = next((n for n in range(start + 1, len(rows)) if rows[n] and rows[n][0] in KINDS), len(rows))
        told = {row[0] for row in rows[start + 1 : end] if row}
        own = {key for key, each in signature(kind).parameters.items() if each.kind is Parameter.KEYWORD_ONLY}
        assert own - {"judge"} <= told, name
        assert ("judge" in own) == (name not in ("decisions", "layers", "losses"))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kind": "pie"}, "a figure is of no kind 'pie': there are lines, bars, security"),
        ({"metrics": "clean"}, "has no 'metrics': there are"),
        ({"metric": None}, "figure 'bars' needs 'metric'"),
        ({"runs": []}, "figure 'bars' needs 'runs'"),
        ({"runs": ["KD at {T}", "nobody"]}, "the grid has no run 'nobody'; it has"),
        ({"runs": [{"label": "nobody"}]}, "a run needs 'run'"),
        ({"runs": [{"run": "plain", "title": "nobody"}]}, "has no 'title'"),
        ({"runs": ["KD at {temperature}"]}, "names an axis temperature"),
        ({"runs": [{"run": "KD at {T}", "label": "at {s}"}]}, "names an axis s"),
        ({"judge": "nobody"}, "there is no judging 'nobody', but attacks"),
        ({"title": "T = {s}"}, "names an axis s"),
    ],
)
def test_what_could_never_be_drawn_is_refused_before_anything_runs(changed, sentence, tmp_path):
    study = grid(tmp_path, figures=[{**BARS, **changed}]).study
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        check(study)
    assert "\n" not in str(error.value)


def test_an_entry_that_maps_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of no kind 'bars'"):
        check(grid(tmp_path, figures=["bars"]).study)


def test_a_recipe_may_leave_out_runs(tmp_path):
    recipes = {"quick": {"only": ["plain"]}}
    quick = grid(tmp_path, "quick", recipes=recipes, runs=[{"name": "KD at {T}"}, {"name": "plain"}], figures=[BARS])
    check(quick.study)
    for planned in by_name(quick, "plain"):
        judged(planned, [record("clean", 0.5)])
    (drawn,) = figures(quick, **BARS)
    assert "KD" not in drawn.alt + drawn.caption
    assert draw(Results(quick), {**BARS, "runs": "KD at {T}"}) == []


def test_a_title_that_names_an_axis_makes_a_figure_for_each_value(tmp_path):
    found = grid(tmp_path)
    for planned in found.cells.values():
        judged(planned, [record("clean", planned.cell.axes.get("T", 50) / 100)])
    first, second = figures(found, **{**BARS, "title": "Figure 1: T = {T}", "note": "A note."})
    assert (first.title, second.title) == ("Figure 1: T = 10", "Figure 1: T = 40")
    assert "KD at 10 10.0, plain 50.0 %" in first.alt
    assert "KD at 40 40.0, plain 50.0 %" in second.alt
    assert first.caption.endswith("A note.")


def test_labels_over_and_except_of_a_run(tmp_path):
    found = grid(tmp_path)
    for planned in found.cells.values():
        judged(planned, [record("clean", planned.cell.axes.get("T", 50) / 100)])
    runs = [{"run": "KD at {T}", "label": "distilled ({T})", "except": [{"T": 40}]}, {"run": "KD at {T}"}]
    (drawn,) = figures(found, **{**BARS, "runs": runs, "over": {"T": [40, 10]}})
    (ax,) = drawn.figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["distilled (10)", "KD at 40", "KD at 10"]


def test_what_is_not_there_is_told_with_its_reason(tmp_path):
    names = ("one", "failed", "missing", "bare")
    found = grid(tmp_path, runs=[{"name": name, "set": {"model.alpha": n}} for n, name in enumerate(names)])
    judged(by_name(found, "one")[0], [record("clean", 0.5)])
    fail(by_name(found, "failed")[1], "It diverged.")
    for planned in by_name(found, "bare"):
        judged(planned, [record("PGD-20", 0.5)])
    (drawn,) = figures(found, kind="bars", metric="clean", runs=list(names))
    assert "Left out: failed (failed); missing (not run); bare (without clean)." in drawn.caption
    assert drawn.caption.startswith("One seed; whiskers: 95 % interval over the test images.")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_without_any_run_a_figure_says_so(kind, tmp_path):
    own = {"x": "T", "metric": "clean", "curve": "PGD over steps", "method": "Saliency", "files": "*.png"}
    needed = {"lines": "x metric", "bars": "metric", "security": "curve", "attributions": "method", "pictures": "files"}
    said = {key: own[key] for key in needed.get(kind, "").split()}
    (drawn,) = figures(grid(tmp_path), kind=kind, runs=["KD at {T}"], title="A title", **said)
    assert drawn.caption == "Left out: KD at 10, KD at 40 (not run)."
    assert drawn.title == "A title"
    assert drawn.figure.texts[0].get_text() == "Nothing to draw yet"


def test_losses_of_all_seeds(tmp_path):
    found = grid(tmp_path)
    for planned in by_name(found, "KD at 10"):
        begin = 2.0 + 0.1 * planned.cell.seed
        trained(planned, [{"train/loss": begin - 0.5 * epoch, "val/acc": 0.3 * epoch} for epoch in range(4)])
    judged(by_name(found, "plain")[0], [])
    (drawn,) = figures(found, kind="losses", runs=["KD at {T}", "plain"])
    loss, accuracy = drawn.figure.axes
    lines = [line.get_xydata().tolist() for line in loss.get_lines() if len(line.get_xdata())]
    assert lines == [[[e, pytest.approx(2.0 - 0.5 * e + 0.1 * seed)] for e in range(4)] for seed in range(3)]
    assert list(accuracy.get_lines()[0].get_ydata()) == pytest.approx([0, 30, 60, 90])
    assert "KD at 10 at a training loss of 0.5 to 0.7" in drawn.alt
    assert "A line for each of 3 seeds." in drawn.caption
    assert "Left out: KD at 40 (not run); plain (without metrics by epoch)." in drawn.caption


def test_pictures_are_those_of_the_first_seed_that_has_any(tmp_path):
    found = grid(tmp_path)
    seeds = by_name(found, "plain")
    folders = [judged(planned, [record("clean", 0.5)]) for planned in seeds]
    pixels = {name: [[[value / 255] * 3] * 60] * 30 for name, value in (("b.png", 51), ("a.png", 102))}
    for folder in folders[1:]:
        (folder / "figures").mkdir()
        for name, values in pixels.items():
            imsave(folder / "figures" / name, np.array(values))
    made = draw(Results(found), {"kind": "pictures", "files": "figures/*.png", "runs": ["plain", "KD at {T}"]})
    assert [drawn.alt for drawn in made] == [f"plain: the picture '{name}' that its test drew." for name in "ab"]
    shown = [drawn.figure.axes[0].get_images()[0].get_array() for drawn in made]
    assert [round(float(each[0, 0, 0]) * 255) for each in shown] == [102, 51]
    assert [tuple(drawn.figure.get_size_inches() * 150) for drawn in made] == [(60, 30)] * 2
    assert made[-1].caption == "plain: b. Left out: KD at 10, KD at 40 (not run)."


def test_pages_hold_all_in_their_order():
    for count in range(1, 40):
        for size in range(1, 12):
            parts = list(style.pages(range(count), size))
            assert [item for part in parts for item in part] == list(range(count))
            assert max(map(len, parts)) <= size
            assert len(parts) == -(-count // size)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((0, "0.0"), (0.5, "0.5"), (12.345, "12.3"), (-3.14159, "-3.14"), (999.96, "1000.0"), (1234.5, "1,234")),
        *((2_296_922, "2.3 M"), (6.66e9, "6.66 G"), (1.2e-5, "1.2e-05")),
    ],
)
def test_numbers_as_pictures_show_them(value, said):
    assert style.number(value) == said
