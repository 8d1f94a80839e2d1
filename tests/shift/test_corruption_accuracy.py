"""Accuracy, mean error, what compares to a teacher, calibration: against values computed by hand or another library."""

import numpy as np
import pytest
import torch
from pyarrow import parquet
from scipy import stats
from shift_helpers import Brightness, batches, pictures, published
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from attacks.compare import compare
from datamodules.corrupted import COUNTED, EXTRAS
from shift import CIFARC, CIFARCLike, Corrupted, Judgement, corrupt, corruption_accuracy, judgements
from shift.corrupted import UNTOUCHED

KINDS = (*COUNTED, *EXTRAS)


def judgement(correct, confidence=None):
    """What a network says that is right where ``correct`` is 1."""
    correct = np.asarray(correct, dtype=bool)
    n = len(correct)
    sure = np.full(n, 0.75) if confidence is None else np.asarray(confidence)
    return Judgement(np.zeros(n, int), correct, sure, -np.log(sure), (~correct).astype(int), np.arange(n), np.zeros(n))


def corrupted(cells):
    """A result of two counted corruptions and an extra at two severities; cells are ten bits each."""
    names = [(kind, severity) for kind in ("fog", "snow", "saturate") for severity in (1, 2)]
    found = {cell: judgement([int(bit) for bit in bits]) for cell, bits in zip(names, cells, strict=True)}
    return Corrupted("CIFAR-C-like", judgement([1] * 10), found, dict.fromkeys([UNTOUCHED, *names], 0.5))


STUDENT = corrupted(["1111111100", "1111100000", "1111111110", "1111110000", "1111111111", "0000000000"])
TEACHER = corrupted(["1111111110", "1111111100", "1111111110", "1111111000", "1111111111", "0000000000"])


def by_metric(records):
    found = {record.metric: record for record in records}
    assert all(name.startswith("CIFAR-C-like: ") for name in found)
    return {name.removeprefix("CIFAR-C-like: "): record for name, record in found.items()}


def test_figures_by_hand():
    found = by_metric(STUDENT.records())
    values = {name: pytest.approx(record.value) for name, record in found.items()}
    assert (values["clean"], values["fog 1"], values["fog 2"], values["snow 2"]) == (1.0, 0.8, 0.5, 0.6)
    assert (values["fog"], values["snow"], values["saturate"]) == (65, 75, 50)
    # Extras are no part of what follows.
    assert (values["severity 1"], values["severity 2"], values["mean error of 2"]) == (85, 55, 30)
    assert all(record.n == 10 for record in found.values())
    assert "error relative to teacher" not in found


def test_error_relative_to_the_teacher_by_hand():
    """Fog: (2 + 5) / (1 + 2); snow: (1 + 4) / (1 + 3)."""
    assert by_metric(STUDENT.records(TEACHER))["error relative to teacher"].value == pytest.approx((7 / 3 + 5 / 4) / 2)
    assert by_metric(TEACHER.records(TEACHER))["error relative to teacher"].value == pytest.approx(1)
    assert by_metric(TEACHER.records(TEACHER))["error relative to teacher"].low == pytest.approx(1)
    perfect = corrupted(["1111111111"] * 6)
    assert "error relative to teacher" not in by_metric(STUDENT.records(perfect))


def test_interval_of_the_mean_error_takes_an_image_as_one_draw():
    """Not the forty answers as if they were independent: Student's over the ten images' means."""
    record = by_metric(STUDENT.records())["mean error of 2"]
    cells = [STUDENT.cells[kind, s].correct for kind in ("fog", "snow") for s in (1, 2)]
    per_image = 100 * (1 - np.mean(cells, 0))
    low, high = stats.t.interval(0.95, 9, per_image.mean(), stats.sem(per_image))
    assert (record.low, record.high) == (pytest.approx(max(0, low)), pytest.approx(high))


def test_interval_of_the_ratio_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    names = [("fog", 1), ("fog", 2), ("snow", 1), ("snow", 2)]
    spent = dict.fromkeys([UNTOUCHED, *names], 0.0)
    student, teacher = (
        Corrupted("x", judgement([1] * 400), {cell: judgement(hard + rng.random(400) > t) for cell in names}, spent)
        for t in (0.9, 0.7)
    )
    (record,) = (record for record in student.records(teacher) if "relative" in record.metric)
    own, others = student.errors(), teacher.errors()
    draws = rng.integers(0, 400, (4000, 400))
    ratios = np.mean([own[c][draws].mean(1) / others[c][draws].mean(1) for c in range(2)], 0)
    assert (record.low, record.high) == pytest.approx(np.percentile(ratios, [2.5, 97.5]), rel=0.03)


def test_calibration_is_torchmetrics_of_each_cell():
    images, labels = pictures(60), np.arange(60) % 4
    model = Brightness(scale=20)
    like = CIFARCLike(severities=[2, 5], seed=3)
    (found,) = corruption_accuracy({"network": model}, batches(images, labels, 40, 20), like).values()
    records = {record.metric.rpartition(": ")[2]: record for record in found.records()}
    for severity in (2, 5):
        errors, losses = [], []
        for kind in found.counted:
            x = torch.from_numpy(corrupt(images, range(60), kind, severity, 3)).float() / 255
            logits = model(x).double()
            p = logits.softmax(1).clamp(max=1 - 1e-12)
            errors.append(float(multiclass_calibration_error(p, torch.from_numpy(labels), 4, n_bins=15)))
            losses.append(float(nn.functional.cross_entropy(logits, torch.from_numpy(labels))))
        assert records[f"ECE at severity {severity}"].value == pytest.approx(np.mean(errors), abs=1e-6)
        assert records[f"NLL at severity {severity}"].value == pytest.approx(np.mean(losses), abs=1e-6)


def test_what_is_found_does_not_depend_on_batches_or_on_company():
    images, labels = pictures(12), np.arange(12) % 4
    networks = {"student": Brightness(), "teacher": Brightness(scale=1)}
    together = corruption_accuracy(networks, batches(images, labels, 5, 7), CIFARCLike([4]))
    alone = corruption_accuracy({"student": networks["student"]}, batches(images, labels), CIFARCLike([4]))
    assert together["student"].source == "CIFAR-C-like at severity 4"
    assert len(together["student"].cells) == 17
    for cell, said in alone["student"].cells.items():
        for column in ("prediction", "correct", "confidence", "nll", "rank", "index", "label"):
            assert np.array_equal(getattr(said, column), getattr(together["student"].cells[cell], column))
    shares = [[batch] for batch in batches(images, labels, 5, 7)[::-1]]
    parts = [corruption_accuracy(networks, share, CIFARCLike([4]))["student"] for share in shares]
    merged = Corrupted.merge(parts)
    assert np.array_equal(merged.cells["fog", 4].nll, alone["student"].cells["fog", 4].nll)
    assert merged.clean.index.tolist() == list(range(12))


def test_published_files_are_judged_row_by_row(tmp_path):
    """All of an image is one value, (corruption + row) / 255, and the class is that of the nearest of ten levels."""
    source = CIFARC(str(published(tmp_path / "files", labels=[0, 1, 2, 1])))
    clean = np.zeros((4, 3, 32, 32), np.uint8)
    chosen = [tuple(part[[3, 0, 2]] for part in batches(clean, [0, 1, 2, 1])[0])]
    model = Brightness(count=103)  # levels 2.5 grey levels apart
    (found,) = corruption_accuracy({"network": model}, chosen, source).values()
    assert found.source == "CIFAR-10-C"
    assert (found.kinds, found.counted, found.severities) == (list(KINDS), list(COUNTED), [1, 2, 3, 4, 5])
    for k, kind in enumerate(KINDS):
        for severity in range(1, 6):
            rows = 4 * (severity - 1) + np.array([3, 0, 2])
            expected = np.rint((k + rows) / 2.5).astype(int)
            distance = np.abs((k + rows) / 2.5 - np.floor((k + rows) / 2.5) - 0.5)
            said = found.cells[kind, severity]
            assert (said.prediction == expected)[distance > 0.01].all()
            assert said.index.tolist() == [3, 0, 2]
            assert said.label.tolist() == [1, 0, 2]


def test_ranks_count_the_classes_before_the_true_one():
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [1, 1, 0]], dtype=torch.float64)
    said = Judgement.told(logits, torch.tensor([0, 1, 2, 1]), torch.arange(4))
    assert said.rank.tolist() == [0, 1, 2, 1]
    assert said.correct.tolist() == [True, False, False, False]


def test_networks_are_left_as_they_were():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), nn.Dropout(0.5), nn.Linear(3072, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = batches(pictures(4), [0, 1, 2, 3])
    one, other = (judgements({"network": model}, images)["network"] for _ in range(2))
    assert np.array_equal(one.nll, other.nll)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_outcomes_are_compared_image_by_image(tmp_path):
    paths = [tmp_path / "out" / name for name in ("a.parquet", "b.parquet")]
    STUDENT.write(paths[0])
    TEACHER.write(paths[1])
    table = parquet.read_table(paths[0])
    assert table["rank/fog 2"].to_pylist() == [0] * 5 + [1] * 5
    assert {f"{column}/snow 1" for column in ("prediction", "confidence", "nll")} < set(table.column_names)
    found = {row.name: row for row in compare(*paths)}
    assert set(found) == {"clean", *(f"{kind} {s}" for kind in ("fog", "snow", "saturate") for s in (1, 2))}
    assert (found["fog 2"].first, found["fog 2"].second, found["fog 2"].only_second) == (0.5, 0.8, 3)


@pytest.mark.parametrize("severities", [[], [0], [6], [1, 1]])
def test_impossible_severities_are_refused(severities):
    with pytest.raises(ValueError, match="severities are some of 1 to 5"):
        CIFARCLike(severities)


def test_what_cannot_be_judged_is_refused():
    images = batches(pictures(3), [0, 1, 4])
    with pytest.raises(ValueError, match="Labels go from 0 to 4, the network has 4 classes"):
        corruption_accuracy({"network": Brightness()}, images, CIFARCLike())
    with pytest.raises(ValueError, match="on no images"):
        judgements({"network": Brightness()}, [])
    with pytest.raises(ValueError, match=r"expected uint8 or floats in \[0, 1\]"):
        corruption_accuracy({"network": Brightness()}, [(2 * images[0][0], *images[0][1:])], CIFARCLike())
    with pytest.raises(ValueError, match="seed must be at least 0"):
        CIFARCLike(seed=-1)


def test_grey_images_have_no_saturation():
    kinds = CIFARCLike().kinds(batches(pictures(2, 8, 1), [0, 1]))
    assert "saturate" not in kinds
    assert len(kinds) == 16
