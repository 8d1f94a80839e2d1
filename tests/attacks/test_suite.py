"""The suite and its records, on a model whose every answer is known by hand."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from attack_helpers import Counting, Moving, TwoClasses, untouched
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from scipy import stats
from torch import nn

from attacks import FGSM, PGD, Record, Strong, SuiteResult, Threat, run_suite, wilson
from attacks.records import share, write_records

THREAT = Threat("linf", 0.1)

# Ten images of two equal pixels, their value and their label. The model says 1 above 0.5, so within a radius of 0.1
# nothing can be done to values under 0.4 or above 0.6. Three are wrong when clean.
VALUES = torch.tensor([0.10, 0.30, 0.45, 0.48, 0.20, 0.90, 0.70, 0.55, 0.52, 0.80])
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
CLEAN = [True, True, True, True, False, True, True, True, False, False]
ROBUST = [True, True, False, False, False, True, True, False, False, False]


def up(x):
    return (x + 0.1).clamp(0, 1)


def down(x):
    return (x - 0.1).clamp(0, 1)


UP = [True, True, False, False, False, True, True, True, False, False]  # breaks 0.45 and 0.48, which are below
DOWN = [True, True, True, True, False, True, True, False, False, False]  # breaks 0.55, which is above


@pytest.fixture
def model():
    return TwoClasses(torch.full((2,), 0.5), bias=-0.5)


def batches(*sizes):
    """The ten images, cut into batches of these sizes; their indices are 100, 101, ..."""
    images = VALUES.reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()
    whole = images, LABELS, torch.arange(100, 110)
    return list(zip(*(part.split(list(sizes) or [10]) for part in whole), strict=True))


def by_metric(result):
    return {record.metric: record for record in result.records()}


# --- what is measured ---


def test_records_by_hand(model):
    attacks = [Moving("up", up), Moving("down", down), FGSM(), PGD(steps=5)]
    records = by_metric(run_suite(model, batches(4, 6), attacks, THREAT))
    expected = {"clean": 7, "up": 5, "down": 6, "FGSM": 4, "PGD-5": 4, "worst case": 4}
    assert {name: record.value for name, record in records.items()} == {k: v / 10 for k, v in expected.items()}
    for name, record in records.items():
        assert record.n == 10
        interval = stats.binomtest(expected[name], 10).proportion_ci(method="wilson")
        assert (record.low, record.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
        assert record.threat == ("" if name == "clean" else "linf 0.1")
        assert record.seconds >= 0


def test_what_became_of_every_image(model):
    result = run_suite(model, batches(3, 7), [Moving("up", up), Moving("down", down), FGSM()], THREAT)
    assert result.index.tolist() == list(range(100, 110))
    assert result.label.tolist() == LABELS.tolist()
    clean = (VALUES > 0.5).long()
    assert result.predictions["clean"].tolist() == clean.tolist()
    for name, right in {"clean": CLEAN, "up": UP, "down": DOWN, "FGSM": ROBUST, "worst case": ROBUST}.items():
        assert result.right(name).tolist() == right, name
    for name, right in {"up": UP, "down": DOWN, "FGSM": ROBUST}.items():
        # two classes: a correct image that is broken now has the other one, a wrong one keeps its prediction
        flipped = np.array(CLEAN) & ~np.array(right)
        assert result.predictions[name].tolist() == np.where(flipped, 1 - clean.numpy(), clean.numpy()).tolist()
        assert result.distances[name] == pytest.approx(np.where(CLEAN, 0.1, 0.0), abs=1e-6)


def test_the_worst_case_is_of_all_attacks_at_once_and_no_mean(model):
    """Each of two attacks leaves some standing that the other breaks: 5 and 6 of ten, and 4 against both."""
    records = by_metric(run_suite(model, batches(), [Moving("up", up), Moving("down", down)], THREAT))
    assert (records["up"].value, records["down"].value, records["worst case"].value) == (0.5, 0.6, 0.4)


def test_images_that_are_wrong_when_clean_are_not_attacked(model):
    """An attack that moves them back to the right side would make them count as robust."""
    attack = Moving("mirror", lambda x: 1 - x, Threat("linf", 1.0))
    result = run_suite(model, batches(4, 6), [attack], THREAT)
    assert attack.sizes == [4, 3]  # of 4 all are right, of 6 these three
    assert result.right("mirror linf 1").tolist() == [False] * 10
    assert by_metric(result)["mirror linf 1"].value == 0


def test_a_batch_without_a_correct_image_is_not_attacked(model):
    attack = Moving("up", up)
    wrong = [batch for batch in batches(8, 2) if len(batch[0]) == 2]
    result = run_suite(model, wrong, [attack, PGD(restarts=2)], THREAT)
    assert attack.sizes in ([], [0])
    assert [record.value for record in result.records()] == [0.0] * 4
    assert result.predictions["up"].tolist() == result.predictions["clean"].tolist()


def test_every_image_is_judged_once_when_clean_and_the_correct_ones_once_per_attack(model):
    counting = Counting(model)
    run_suite(counting, batches(4, 6), [Moving("up", up), Moving("down", down)], THREAT)
    assert sum(counting.sizes) == 10 + 7 + 7


def test_without_attacks_there_is_clean_accuracy_alone(model):
    (record,) = run_suite(model, batches(), [], THREAT).records()
    assert (record.metric, record.value, record.n) == ("clean", 0.7, 10)


def test_an_attacks_own_threat_goes_before_the_suites(model):
    wide = Moving("up", lambda x: (x + 0.3).clamp(0, 1), Threat("linf", "3/10"))
    result = run_suite(model, batches(), [wide, FGSM(), FGSM(Threat("linf", 0.3))], THREAT)
    records = by_metric(result)
    assert records["up linf 3/10"].threat == "linf 3/10"
    assert records["FGSM"].threat == "linf 0.1"
    assert records["FGSM linf 0.3"].threat == "linf 0.3"  # one attack at two radii is no repetition
    assert (records["up linf 3/10"].value, records["FGSM"].value) == (0.4, 0.4)  # 0.3 goes wrong, 0.55 does not


def test_distances_are_in_the_threats_norm(model):
    """Two pixels, each moved by 0.1."""
    result = run_suite(model, batches(), [Moving("up", up)], Threat("l2", 0.2))
    assert result.distances["up"] == pytest.approx(np.where(CLEAN, 0.02**0.5, 0.0), abs=1e-6)
    result = run_suite(model, batches(), [Moving("up", up, Threat("l2", 0.2))], THREAT)
    assert result.distances["up l2 0.2"] == pytest.approx(np.where(CLEAN, 0.02**0.5, 0.0), abs=1e-6)


def test_the_datasets_box_is_the_threats(model):
    """Images in [-1, 1] are neither refused nor clamped."""
    images = torch.tensor([-0.9, 0.9]).reshape(2, 1, 1, 1).expand(2, 1, 1, 2).contiguous()
    shifted = TwoClasses(torch.ones(2))
    whole = [(images, torch.tensor([0, 1]), torch.arange(2))]
    result = run_suite(shifted, whole, [FGSM()], Threat("linf", 0.1, (-1.0, 1.0)))
    assert [record.value for record in result.records()] == [1.0, 1.0, 1.0]


def test_examples_are_the_first_images_and_their_adversarial_ones(model):
    result = run_suite(model, batches(2, 8), [FGSM()], THREAT, examples=5)
    clean, adversarial = result.examples["FGSM"]
    assert clean.shape == adversarial.shape == (5, 1, 1, 2)
    assert ((adversarial - clean).abs() <= 0.1 + 1e-6).all()


# --- contracts ---


def test_the_model_is_untouched(network):
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    attacks = [FGSM(), PGD(steps=2, restarts=2), PGD(steps=3, batchnorm="train"), Strong(FGSM())]
    with untouched(network):
        run_suite(network, [(x, y, torch.arange(6))], attacks, THREAT, temperature=20.0)


def test_the_model_is_untouched_when_the_suite_fails(network):
    broken = Moving("broken", lambda x: x * float("nan"))
    x = torch.rand(6, 3, 8, 8)
    y = network.eval()(x).argmax(1)
    network.train()
    with untouched(network), pytest.raises(ValueError, match=r"finite|box"):
        run_suite(network, [(x, y, torch.arange(6))], [broken], THREAT)


def test_judged_in_eval_mode(network):
    """A model in training mode is judged as it will be used: without dropout, by its running averages."""
    x = torch.rand(40, 3, 8, 8)
    expected = network.eval()(x).argmax(1)
    network.train()
    result = run_suite(network, [(x, expected, torch.arange(40))], [], THREAT)
    assert result.predictions["clean"].tolist() == expected.tolist()


def test_judged_in_float32_whatever_surrounds_the_call():
    """Seven bits of mantissa take 0.5005 for 0.5, which would be class 0."""
    x = torch.full((4, 1, 1, 2), 0.5005)
    model = TwoClasses(torch.full((2,), 0.5), bias=-0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).argmax(1).tolist() == [0] * 4
        result = run_suite(model, [(x, torch.ones(4).long(), torch.arange(4))], [FGSM()], Threat("linf", 1e-4))
    assert result.right("clean").all()
    assert result.right("FGSM").all()


def smooth(classes=4):
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 1.0 / parameter.shape[-1] ** 0.5)
    return model


def pictures(model, count=30):
    x = torch.rand(count, 3, 3, 3, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::6] = (y[::6] + 1) % 4
    return x, y, torch.arange(1000, 1000 + count)


def assert_same(one, other):
    assert one.index.tolist() == other.index.tolist()
    assert one.label.tolist() == other.label.tolist()
    assert one.predictions.keys() == other.predictions.keys()
    for name, found in one.predictions.items():
        assert found.tolist() == other.predictions[name].tolist(), name
    for name, found in one.distances.items():
        assert found == pytest.approx(other.distances[name], abs=1e-6), name


RANDOM = (PGD(steps=2, restarts=3), PGD(steps=4, loss="margin"), FGSM())


def test_results_do_not_depend_on_the_split_into_batches():
    model = smooth()
    whole = pictures(model)
    results = [
        run_suite(model, list(zip(*(part.split(size) for part in whole), strict=True)), RANDOM, THREAT, seed=3)
        for size in (30, 7, 1)
    ]
    assert 0 < results[0].right("worst case").sum() < results[0].right("clean").sum()
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_other_seeds_draw_otherwise():
    model = smooth()
    data = [pictures(model)]
    found = [
        run_suite(model, data, [PGD(steps=1, step_size=0.0)], Threat("l2", 1.0), seed=seed).distances for seed in (0, 1)
    ]
    assert not np.allclose(found[0]["PGD-1"], found[1]["PGD-1"])


def test_results_do_not_depend_on_the_attacks_before():
    """Draws follow from image and seed: an attack gives the same in any company."""
    model = smooth()
    data = [pictures(model)]
    together = run_suite(model, data, RANDOM, THREAT)
    alone = run_suite(model, data, RANDOM[1:2], THREAT)
    name = RANDOM[1].name
    assert together.predictions[name].tolist() == alone.predictions[name].tolist()
    assert together.distances[name] == pytest.approx(alone.distances[name])


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
        assert ours.threat == theirs.threat


def test_one_shard_merges_to_itself(model):
    whole = run_suite(model, batches(), [FGSM()], THREAT)
    assert_same(SuiteResult.merge([whole]), whole)


def test_a_shard_that_repeats_an_image_counts_it_once(model):
    """One process that evaluates everything may see padding, too."""
    (x, y, index) = batches()[0]
    twice = torch.tensor([*range(10), 0, 0, 0])
    result = run_suite(model, [(x[twice], y[twice], index[twice])], [FGSM()], THREAT)
    assert [record.n for record in SuiteResult.merge([result]).records()] == [10, 10, 10]


# --- names ---


def test_two_attacks_of_one_name_are_refused(model):
    with pytest.raises(ValueError, match="PGD-10"):
        run_suite(model, batches(), [PGD(), PGD(random_start=False)], THREAT)


@pytest.mark.parametrize(
    ("attack", "temperature", "kept"),
    [
        (Strong(FGSM()), 1.0, False),
        (Strong(FGSM()), 20.0, True),
        (Strong(FGSM(), 1.0), 20.0, False),
        (Strong(FGSM(), 20.0), 1.0, True),
    ],
    ids=["untempered model", "tempered model", "T=1 by hand", "T=20 by hand"],
)
def test_a_strong_attack_at_temperature_one_is_the_weak_one_and_left_out(model, attack, temperature, kept):
    result = run_suite(model, batches(), [FGSM(), attack], THREAT, temperature=temperature)
    assert any(name.startswith("FGSM strong") for name in result.predictions) == kept
    assert any(name.startswith("FGSM strong") for name in by_metric(result)) == kept
    assert "FGSM" in result.predictions


def test_strong_attacks_are_given_the_training_temperature(model):
    """Saturated at 1e4, the weak attack does nothing; divided by 1e4 it breaks what can be broken."""
    hot = TwoClasses(torch.full((2,), 0.5), bias=-0.5, scale=1e5)
    result = run_suite(hot, batches(), [FGSM(), Strong(FGSM())], THREAT, temperature=1e5)
    assert result.right("FGSM").tolist() == CLEAN
    assert result.right("FGSM strong").tolist() == ROBUST


# --- refusals ---


def refused(model, x, match, attacks=(), y=None):
    labels = LABELS[: len(x)] if y is None else y
    with pytest.raises(ValueError, match=match) as caught:
        run_suite(model, [(x, labels, torch.arange(len(x)))], list(attacks), THREAT)
    message = str(caught.value)
    assert len(message.split()) >= 5, "a sentence, please"


def test_images_that_are_no_images_are_refused(model):
    x = batches()[0][0]
    refused(model, (x * 255).to(torch.uint8), r"(?i)float|uint8")
    refused(model, x * 255, "box")
    refused(model, x - 0.5, "box")
    refused(model, x * float("nan"), "(?i)finite|nan|box")


def test_examples_outside_the_box_are_refused(model):
    refused(model, batches()[0][0], "box", [Moving("out", lambda x: x + 1)])


def test_examples_that_are_not_finite_are_refused(model):
    refused(model, batches()[0][0], "(?i)finite|nan|box", [Moving("out", lambda x: x * float("nan"))])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    """argmax of NaN is class 0, which is right for a tenth of CIFAR-10."""

    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), value) * x.flatten(1).sum(1, keepdim=True)

    refused(Broken(), batches()[0][0], "(?i)finite")


@pytest.mark.parametrize("data", [[], [(torch.zeros(0, 1, 1, 2), torch.zeros(0).long(), torch.zeros(0).long())]])
def test_no_images_are_refused(model, data):
    with pytest.raises(ValueError, match="images"):
        run_suite(model, data, [FGSM()], THREAT)


def test_an_example_outside_the_ball_is_no_success(model):
    """Minimum-norm attacks have no ball: given a threat model they succeed where they stay within its radius."""
    far = Moving("far", lambda x: 1 - x)  # breaks every image; of the correct ones three move by at most 0.1
    result = run_suite(model, batches(), [far], Threat("linf", 0.11))
    assert result.right("far").tolist() == ROBUST


# --- files ---


def test_outcomes_survive_parquet(model, tmp_path):
    result = run_suite(model, batches(4, 6), [FGSM(), Moving("up", up)], THREAT)
    path = tmp_path / "outcomes" / "network.parquet"
    path.parent.mkdir()
    result.write(path)
    table = parquet.read_table(path).to_pydict()
    assert table["index"] == list(range(100, 110))
    assert table["label"] == LABELS.tolist()
    for name in ("clean", "FGSM", "up"):
        assert table[f"prediction/{name}"] == result.predictions[name].tolist()
    for name in ("FGSM", "up"):
        assert table[f"distance/{name}"] == pytest.approx(result.distances[name])


def read(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return lines, rows


def test_records_are_appended_and_the_table_holds_them_all(tmp_path):
    first = [Record("clean", 0.7, 10, 0.4, 0.9, 0.1, model="student", checkpoint="best")]
    second = [Record('PGD-20 "x5", l2', 0.4, 10, 0.2, 0.7, 1.5, threat="linf 8/255", model="teacher")]
    write_records(tmp_path, first)
    write_records(tmp_path, second)
    lines, rows = read(tmp_path)
    assert [Record(**line) for line in lines] == first + second
    assert [row["metric"] for row in rows] == ["clean", 'PGD-20 "x5", l2']
    assert [float(row["value"]) for row in rows] == [0.7, 0.4]
    assert [int(row["n"]) for row in rows] == [10, 10]
    assert rows[1]["threat"] == "linf 8/255"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.jsonl"]


def test_an_interrupted_write_loses_nothing_that_stood_there(tmp_path, monkeypatch):
    record = Record("clean", 0.7, 10, 0.4, 0.9, 0.1)
    write_records(tmp_path, [record])
    before = (tmp_path / "results.csv").read_text()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, [record])
    assert (tmp_path / "results.csv").read_text() == before
    monkeypatch.undo()
    write_records(tmp_path, [record])
    lines, rows = read(tmp_path)
    assert len(lines) == len(rows) >= 2


def test_a_line_that_was_torn_off_does_not_stop_what_follows(tmp_path):
    """A process killed while it appends leaves half a line; the runs after it must still be recorded."""
    record = Record("clean", 0.7, 10, 0.4, 0.9, 0.1)
    write_records(tmp_path, [record])
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"metric": "cle')
    write_records(tmp_path, [record])
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["metric"] for row in csv.DictReader(file)] == ["clean", "clean"]


def test_a_folder_that_does_not_exist_yet_is_made(tmp_path):
    write_records(tmp_path / "runs" / "ard", [Record("clean", 0.7, 10, 0.4, 0.9, 0.1)])
    assert len(read(tmp_path / "runs" / "ard")[0]) == 1


def test_what_the_suite_finds_can_be_written(model, tmp_path):
    records = list(run_suite(model, batches(), [FGSM()], THREAT).records())
    write_records(tmp_path, records)
    assert [Record(**line) for line in read(tmp_path)[0]] == records


# --- intervals ---


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(pair):
    successes, n = pair
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    low, high = wilson(successes, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert 0 <= low <= successes / n <= high <= 1  # matplotlib refuses error bars of negative length


def test_wilson_at_other_levels():
    expected = stats.binomtest(30, 40).proportion_ci(0.99, "wilson")
    assert wilson(30, 40, stats.norm.ppf(0.995)) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (1, 0), (-1, 5), (6, 5), (0, -1)])
def test_wilson_needs_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_share():
    record = share("PGD-20", 3, 4, 1.25, "linf 8/255")
    assert (record.metric, record.value, record.n, record.threat) == ("PGD-20", 0.75, 4, "linf 8/255")
    assert (record.low, record.high) == wilson(3, 4)
