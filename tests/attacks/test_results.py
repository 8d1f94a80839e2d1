"""What a suite's result holds: shards, the k likeliest classes, attacks without limit, files; and its tables."""

import io

import numpy as np
import pytest
import torch
from attack_helpers import Moving
from pyarrow import parquet
from rich.console import Console
from scipy import stats
from suite_helpers import (
    CLEAN,
    LABELS,
    ROBUST,
    THREAT,
    UP,
    VALUES,
    assert_same,
    batches,
    by_metric,
    down,
    halves,
    pictures,
    smooth,
    up,
)
from torch import nn

from attacks import FAB, FGSM, PGD, Attack, AutoAttack, MinimumNorm, SuiteResult, Threat, run_suite
from attacks.results import COLUMNS
from attacks.subject import note
from attacks.tables import accuracies, costs

RANDOM = (PGD(steps=2, restarts=3), PGD(steps=4, loss="margin"), AutoAttack(attacks=[FGSM(), PGD(steps=3)]))


@pytest.fixture
def model():
    return halves()


# --- shards ---


def test_shards_merge_to_the_whole_and_each_image_counts_once():
    """Distributed samplers deal the images out in turn and repeat some to make shards equal."""
    model = smooth()
    x, y, index = pictures(model, 31)
    whole = run_suite(model, [(x, y, index)], RANDOM, THREAT)
    shards = []
    for rank in range(4):
        mine = torch.cat([torch.arange(31), torch.arange(1)])[rank::4].flip(0)
        shards.append(run_suite(model, [(x[mine], y[mine], index[mine])], RANDOM, THREAT))
    merged = SuiteResult.merge(shards)
    assert_same(merged, whole)
    assert len(merged.index) == 31
    for ours, theirs in zip(merged.records(), whole.records(), strict=True):
        assert (ours.metric, ours.value, ours.n, ours.low, ours.high) == (
            theirs.metric,
            theirs.value,
            theirs.n,
            theirs.low,
            theirs.high,
        )
        assert (ours.threat, ours.forwards, ours.backwards) == (theirs.threat, theirs.forwards, theirs.backwards)


def test_shards_took_as_long_as_the_slowest(model):
    shards = [run_suite(model, [batch], [FGSM()], THREAT) for batch in batches(3, 3, 4)]
    for shard, seconds in zip(shards, (2.0, 5.0, 3.0), strict=True):
        shard.outcomes["FGSM"].seconds = seconds
    assert by_metric(SuiteResult.merge(shards))["FGSM"].seconds == 5.0


def test_one_shard_merges_to_itself(model):
    whole = run_suite(model, batches(), [FGSM()], THREAT)
    assert_same(SuiteResult.merge([whole]), whole)


def test_a_shard_that_repeats_an_image_counts_it_once(model):
    """One process that evaluates everything may see padding, too."""
    (x, y, index) = batches()[0]
    twice = torch.tensor([*range(10), 0, 0, 0])
    result = run_suite(model, [(x[twice], y[twice], index[twice])], [FGSM()], THREAT)
    assert [record.n for record in SuiteResult.merge([result]).records()] == [10, 10, 10]


def test_a_shard_in_which_nothing_was_attacked_merges(model):
    """It has noted nothing."""
    right, wrong = (
        run_suite(model, [tuple(part[torch.tensor(rows)] for part in batches()[0])], [Noting()], THREAT)
        for rows in ([0, 2, 5], [4, 8])
    )
    merged = SuiteResult.merge([wrong, right])
    assert merged.index.tolist() == [100, 102, 104, 105, 108]
    nan = float("nan")
    expected = [0.10, 0.45, nan, 0.90, nan]
    assert merged.outcomes["noting"].notes["value"] == pytest.approx(expected, nan_ok=True)
    assert merged.outcomes["noting"].notes["powers"].shape == (5, 3)
    assert merged.shown.tolist() == [104, 108, 100, 102, 105]
    assert merged.examples["clean"][:, 0, 0, 0] == pytest.approx([0.20, 0.52, 0.10, 0.45, 0.90])


# --- files ---


def test_outcomes_survive_parquet(model, tmp_path):
    attacks = [FGSM(), AutoAttack(attacks=[Moving("up", up), Moving("down", down)])]
    result = run_suite(model, batches(4, 6), attacks, THREAT)
    path = tmp_path / "outcomes" / "network.parquet"
    result.write(path)
    table = parquet.read_table(path).to_pydict()
    assert table["index"] == list(range(100, 110))
    assert table["label"] == LABELS.tolist()
    assert table["broken_by"] == ["", "", "FGSM", "FGSM", "clean", "", "", "FGSM", "clean", "clean"]
    assert [column for column in table if column.endswith("/clean")] == ["prediction/clean", "rank/clean"]
    for name, outcome in result.outcomes.items():
        shown = ("prediction", "rank") if name == "clean" else COLUMNS
        assert {f"{column}/{name}" for column in shown} <= table.keys()
        for column in shown:
            assert table[f"{column}/{name}"] == getattr(outcome, column).tolist(), (name, column)


class Noting(Attack):
    """Notes a number and a row of three for every image that it is given, by the image's value."""

    name = "noting"

    def perturb(self, model, x, y, draws):
        value = x.flatten(1)[:, 0]
        note(model, "value", value)
        note(model, "powers", torch.stack([value, value**2, value**3], 1))
        return x


def test_what_an_attack_notes_is_kept_of_the_images_that_it_was_given(model, tmp_path):
    result = run_suite(model, batches(4, 6), [Noting()], THREAT)
    expected = np.where(CLEAN, VALUES.numpy(), np.nan)
    assert result.outcomes["noting"].notes["value"] == pytest.approx(expected, nan_ok=True)
    result.write(tmp_path / "network.parquet")
    table = parquet.read_table(tmp_path / "network.parquet")
    assert table["value/noting"].to_numpy() == pytest.approx(expected, nan_ok=True)
    powers = np.array(table["powers/noting"].to_pylist())
    assert powers == pytest.approx(expected[:, None] ** [1, 2, 3], nan_ok=True)


def test_the_same_result_is_written_byte_for_byte(model, tmp_path):
    for name in ("one", "other"):
        run_suite(model, batches(4, 6), [PGD(restarts=2), Noting()], THREAT).write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_images_that_were_kept_are_written(model, tmp_path):
    result = run_suite(model, batches(4, 6), [FGSM(Threat("linf", "1/10"))], THREAT, examples=10)
    result.write_images(tmp_path / "outcomes" / "network.npz")
    with np.load(tmp_path / "outcomes" / "network.npz") as file:
        kept = dict(file)
    assert kept.keys() == {"index", "clean", "FGSM linf 1/10"}
    assert kept["index"].tolist() == list(range(100, 110))
    assert kept["clean"] == pytest.approx(batches()[0][0].numpy())
    moved = np.abs(kept["FGSM linf 1/10"] - kept["clean"]).reshape(10, -1).max(1)
    assert moved == pytest.approx(result.outcomes["FGSM linf 1/10"].linf, abs=1e-6)


# --- the k likeliest classes ---


def test_top_k_by_hand():
    """The pixels are the logits, and the attack takes 0.4 from the first, which is the true class."""
    x = torch.tensor([[0.9, 0.6, 0.3, 0.1], [0.8, 0.75, 0.7, 0.1], [0.95, 0.3, 0.2, 0.1], [0.2, 0.9, 0.1, 0.1]])
    data = [(x.reshape(4, 1, 2, 2), torch.zeros(4).long(), torch.arange(4))]
    fade = Moving("fade", lambda x: x - 0.4 * torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    result = run_suite(nn.Flatten(), data, [fade], Threat("linf", 0.5), top=2)
    assert result.outcomes["clean"].rank.tolist() == [0, 0, 0, 1]
    assert result.outcomes["fade"].rank.tolist() == [1, 2, 0, 1]  # the last was wrong, and is not attacked
    records = by_metric(result)
    assert {name: record.value for name, record in records.items()} == {
        "clean": 0.75,
        "clean top-2": 1.0,
        "fade": 0.25,
        "fade top-2": 0.75,
        "worst case": 0.25,
    }
    assert result.right("worst case", 2).tolist() == [True, False, True, True]
    assert records["fade top-2"].threat == "linf 0.5"
    assert list(by_metric(run_suite(nn.Flatten(), data, [fade], Threat("linf", 0.5)))) == [
        "clean",
        "fade",
        "worst case",
    ]


def test_of_classes_that_tie_the_first_is_predicted_and_the_true_one_is_not():
    x = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]).reshape(2, 1, 2, 2)
    result = run_suite(nn.Flatten(), [(x, torch.tensor([0, 1]), torch.arange(2))], [], THREAT)
    assert result.outcomes["clean"].prediction.tolist() == [0, 0]
    assert result.outcomes["clean"].rank.tolist() == [0, 1]


# --- attacks without limit ---


class Far(MinimumNorm):
    """Mirrors what is below a half, and gives up on the rest."""

    name = "far"

    def perturb(self, model, x, y, draws):
        return torch.where(x < 0.5, 1 - x, x)


def test_an_attack_without_limit_reports_lengths_and_is_not_in_the_worst_case(model):
    """It breaks the four images below a half, by 0.8, 0.4, 0.1 and 0.04."""
    result = run_suite(model, batches(4, 6), [Far(unlimited=True), FGSM()], THREAT)
    records = by_metric(result)
    assert list(records) == ["clean", "far", "far mean l2", "far mean linf", "FGSM", "worst case"]
    assert (records["far"].value, records["far"].threat) == (0.3, "")
    assert result.limited == ["FGSM"]
    assert result.right("worst case").tolist() == ROBUST
    assert records["worst case"].threat == "linf 0.1"
    for unit, scale in (("linf", 1.0), ("l2", 2**0.5)):
        lengths = scale * np.array([0.8, 0.4, 0.1, 0.04])
        record = records[f"far mean {unit}"]
        assert (record.unit, record.n) == (unit, 4)
        assert record.value == pytest.approx(lengths.mean(), abs=1e-6)
        expected = stats.t.interval(0.95, 3, lengths.mean(), stats.sem(lengths))
        assert (record.low, record.high) == pytest.approx((max(expected[0], 0), expected[1]), abs=1e-6)  # a length


def test_an_attack_without_limit_comes_last_where_it_is_told_what_broke_an_image(model):
    result = run_suite(model, batches(), [Far(unlimited=True), FGSM()], THREAT)
    assert result.broken_by().tolist() == ["far", "far", "FGSM", "FGSM", "clean", "", "", "FGSM", "clean", "clean"]


def test_with_a_limit_the_same_attack_counts_within_it(model):
    result = run_suite(model, batches(), [Far()], THREAT)
    assert result.right("far").tolist() == UP  # 0.10 and 0.30 went too far
    assert list(by_metric(result)) == ["clean", "far", "worst case"]


def test_without_any_limited_attack_there_is_no_worst_case(model):
    result = run_suite(model, batches(), [Far(unlimited=True)], THREAT)
    assert "worst case" not in by_metric(result)
    assert result.radii == {"far": None}


@pytest.mark.parametrize(("rows", "lengths"), [([5, 6], []), ([3, 6], [0.04])], ids=["none", "one"])
def test_the_mean_length_over_few_images(model, rows, lengths):
    data = [tuple(part[torch.tensor(rows)] for part in batches()[0])]
    records = by_metric(run_suite(model, data, [Far(unlimited=True)], THREAT))
    assert ("far mean linf" in records) == bool(lengths)
    for value in lengths:
        record = records["far mean linf"]
        assert (record.value, record.low, record.high) == pytest.approx((value, value, value), abs=1e-6)


def test_fab_without_limit_finds_the_distance_to_the_boundary(model):
    result = run_suite(model, batches(), [FAB(steps=20, norm="l2", unlimited=True)], THREAT)
    found = by_metric(result)["FAB-T l2 20 steps unlimited mean l2"]
    distances = (2**0.5 * (VALUES[torch.tensor(CLEAN)] - 0.5).abs()).mean()
    assert found.n == 7
    assert distances <= found.value <= 1.02 * distances


# --- tables ---


def lines(table):
    """What a table looks like at a width of 100, as rows of cells."""
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    return [
        [cell.strip() for cell in line.strip().strip("│┃").replace("┃", "│").split("│")] for line in text.splitlines()
    ]


@pytest.fixture
def shown(model):
    """A student's last and best weights, tested in this order, and a teacher under fewer attacks."""
    best = run_suite(model, batches(), [Far(unlimited=True), FGSM()], THREAT)
    teacher = run_suite(model, batches(), [FGSM()], Threat("linf", 0.01))
    return {
        ("student", "last"): list(teacher.records()),
        ("teacher", ""): list(teacher.records()),
        ("student", "best"): list(best.records()),
    }


def test_accuracies_are_a_table_of_attacks_and_networks(shown):
    rows = lines(accuracies(shown, "Accuracy"))
    assert rows[0] == ["Accuracy"]
    assert rows[2] == ["", "student (best)", "student (last)", "teacher"]
    body = {row[0]: row[1:] for row in rows[4:] if len(row) == 4}
    assert list(body) == ["clean", "far", "far mean l2", "far mean linf", "FGSM", "worst case"]
    assert body["clean"] == ["70.0 [39.7, 89.2]"] * 3
    assert body["FGSM"] == ["40.0 [16.8, 68.7]", "70.0 [39.7, 89.2]", "70.0 [39.7, 89.2]"]
    assert body["far mean linf"][0] == "0.335 [0, 0.8883]"
    assert body["far"][1:] == ["–", "–"]


def test_costs_are_a_table_of_what_cost_anything(shown):
    rows = lines(costs(shown))
    body = {row[0]: row[1:] for row in rows[4:] if len(row) == 4}
    assert list(body) == ["FGSM"]
    assert body["FGSM"][0].startswith("1.0 + 1.0, 0.0 s")


def test_tables_of_clean_accuracy_alone(model):
    results = {("network", ""): list(run_suite(model, batches(), [], THREAT).records())}
    assert ["clean", "70.0 [39.7, 89.2]"] in lines(accuracies(results, "Accuracy"))
    assert not any("clean" in row for row in lines(costs(results)))
