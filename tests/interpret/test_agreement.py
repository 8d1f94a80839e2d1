"""Agreement of student and teacher: against NumPy, by hand, and independent of batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from attacks import PGD, Threat, wilson
from attacks.base import Attack
from interpret.agreement import agreement
from interpret.calibration import BINS, Answers


class Linear(nn.Module):
    """Logits ``scale (W x + b)``, behind a batch-norm and a dropout that eval mode turns into nothing."""

    def __init__(self, classes=4, inputs=6, seed=0, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(inputs, classes)
        self.scale = scale
        nn.init.normal_(self.fc.weight, generator=generator)
        nn.init.normal_(self.fc.bias, generator=generator)

    def forward(self, x):
        return self.scale * self.fc(self.drop(self.norm(x)).flatten(1))


class Values(nn.Module):
    """Class 1 where an image's only value is above a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x):
        z = x.flatten(1)[:, 0] - self.threshold
        return torch.stack([torch.zeros_like(z), 10 * z], 1)


class Up(Attack):
    """Adds an amount to every image."""

    def __init__(self, amount, eps=1.0):
        super().__init__(Threat("linf", eps))
        self.amount = amount
        self.attacked = []

    @property
    def name(self):
        return "up"

    def perturb(self, model, x, y, draws):
        self.attacked.append(model)
        return x + self.amount


class Batches:
    """Images cut into batches, as often as they are asked for."""

    def __init__(self, x, y, size):
        self.parts = list(zip(*(part.split(size) for part in (x, y, torch.arange(len(x)) + 50)), strict=True))

    def __iter__(self):
        return iter(self.parts)


def images(count=40, classes=4):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(count, 1, 2, 3, generator=generator)
    return x, torch.randint(classes, (count,), generator=generator)


def numpy_softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def numpy_ece(confidence, correct):
    """By the definition: bins [k / 15, (k + 1) / 15), the last one with 1."""
    total = 0.0
    for k in range(BINS):
        inside = (confidence >= k / BINS) & ((confidence < (k + 1) / BINS) | (k == BINS - 1))
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    grads = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    flags = [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]
    return {name: tensor.clone() for name, tensor in {**tensors, **grads}.items()}, flags


def assert_untouched(before, model):
    tensors, flags = state(model)
    assert flags == before[1]
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())


# --- figures ---


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_every_figure_is_numpys(temperature):
    student, teacher = Linear(seed=1), Linear(seed=2)
    x, y = images()
    found = agreement(student, teacher, Batches(x, y, 16), temperature=temperature)
    with torch.no_grad():
        z_s, z_t = (model.eval()(x).double().numpy() for model in (student, teacher))
    rows = np.arange(len(y))
    q, p = numpy_softmax(z_s / temperature), numpy_softmax(z_t / temperature)
    assert found.kl == pytest.approx((p * (np.log(p) - np.log(q))).sum(1), rel=1e-9)
    records = {(record.metric, record.model): record for record in found.records()}
    same = z_s.argmax(1) == z_t.argmax(1)
    record = records["agreement", "student"]
    assert (record.value, record.n) == (same.mean(), 40)
    assert (record.low, record.high) == wilson(int(same.sum()), 40)
    kl = "KL to teacher" if temperature == 1 else "KL to teacher at T=4"
    assert records[kl, "student"].value == pytest.approx(found.kl.mean())
    for role, z in (("student", z_s), ("teacher", z_t)):
        p = numpy_softmax(z)  # as the networks are used, whatever the temperature
        answers = getattr(found, role)
        assert answers.nll == pytest.approx(-np.log(p[rows, y]), rel=1e-9)
        assert answers.confidence == pytest.approx(p.max(1), rel=1e-9)
        ece = numpy_ece(p.max(1), p.argmax(1) == y.numpy())
        assert records["ECE", role].value == pytest.approx(ece, abs=1e-12)
        assert records["ECE", role].low <= records["ECE", role].value <= records["ECE", role].high
        assert records["NLL", role].value == pytest.approx(answers.nll.mean())
    assert found.index.tolist() == list(range(50, 90))
    assert found.label.tolist() == y.tolist()


def test_a_network_agrees_with_itself():
    model = Linear(scale=30.0)
    found = agreement(model, model, Batches(*images(), 16), attack=PGD(Threat("linf", 0.3), steps=3))
    records = {(record.metric, record.model): record for record in found.records()}
    assert records["agreement", "student"].value == 1
    assert found.kl.tolist() == [0.0] * 40
    assert records["agreement under PGD-3", "student"].value == 1
    assert records["transfer of PGD-3 from the teacher", "student"].value == 1


def test_hardened_networks_have_finite_figures():
    found = agreement(Linear(seed=1, scale=1e5), Linear(seed=2, scale=1e5), Batches(*images(), 16))
    assert np.isfinite(found.kl).all()
    assert found.kl.max() > 1e3
    assert np.isfinite(found.student.nll).all()


@given(st.lists(st.tuples(st.floats(0.1, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_definitions_and_its_bins(pairs):
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    answers = Answers(np.zeros(len(pairs), int), correct, confidence, np.ones(len(pairs)))
    bins = answers.reliability()
    filled = bins.count > 0
    gaps = bins.count[filled] * np.abs(bins.accuracy[filled] - bins.confidence[filled])
    assert answers.ece == pytest.approx(gaps.sum() / len(pairs), abs=1e-12)
    assert bins.count.sum() == len(pairs)
    assert ((bins.low <= bins.accuracy) & (bins.accuracy <= bins.high))[filled].all()
    assert np.isnan(bins.accuracy[~filled]).all()
    ece, _, top, hard = answers.records("student", 0.0)
    assert ece.low <= ece.value <= ece.high
    assert (top.metric, top.value) == ("mean top probability", pytest.approx(confidence.mean()))
    assert (hard.metric, hard.value) == ("share of p > 0.99", (confidence > 0.99).mean())


def test_the_calibration_error_is_torchmetrics_of_the_probabilities():
    student = Linear(seed=1, scale=2.0)
    x, y = images(200)
    found = agreement(student, student, Batches(x, y, 64))
    with torch.no_grad():
        p = student.eval()(x).double().softmax(1)
    assert found.student.ece == pytest.approx(float(multiclass_calibration_error(p, y, 4, n_bins=15)), abs=1e-7)


def test_full_confidence_shares_the_last_bin():
    """Of one bin with 0.98 right at confidence 1 and 0.96 wrong at 0.95 the error is that of their means."""
    answers = Answers(np.zeros(2, int), np.array([True, False]), np.array([1.0, 0.95]), np.ones(2))
    assert answers.reliability().count.tolist() == [0] * 14 + [2]
    assert answers.ece == pytest.approx(0.975 - 0.5)


# --- adversarial images ---


def test_agreement_and_transfer_by_hand():
    """The student's threshold is 0.5, the teacher's 0.6; every image is moved up by 0.3."""
    x = torch.tensor([0.1, 0.25, 0.35, 0.45, 0.55, 0.7]).view(-1, 1, 1, 1)
    y = torch.tensor([0, 0, 0, 0, 0, 1])
    found = agreement(Values(0.5), Values(0.6), Batches(x, y, 4), attack=Up(0.3)).attacked
    # Moved they are 0.4, 0.55, 0.65, 0.75, 0.85, 1.0.
    assert found.student.tolist() == [0, 1, 1, 1, 1, 1]
    assert found.teacher.tolist() == [0, 0, 1, 1, 1, 1]
    # The student is wrong about 0.55 to begin with, so it does not count.
    assert found.broke.tolist() == [False, False, True, True, False, False]
    assert found.transferred.tolist() == [False, False, True, True, False, False]
    agreed, transfer = found.records()
    assert (agreed.metric, agreed.value, agreed.n) == ("agreement under up", 5 / 6, 6)
    assert (transfer.metric, transfer.value, transfer.n) == ("transfer of up from the teacher", 1.0, 2)
    assert agreed.threat == transfer.threat == "linf 1"


def test_agreement_is_under_attack_on_the_student_and_transfer_is_from_the_teacher():
    student, teacher, attack = Values(0.5), Values(0.6), Up(0.3)
    agreement(student, teacher, Batches(torch.rand(4, 1, 1, 1), torch.zeros(4, dtype=torch.long), 4), attack=attack)
    assert attack.attacked == [student, teacher]


def test_what_breaks_the_teacher_alone_does_not_transfer():
    x, y = torch.tensor([0.1, 0.35, 0.45]).view(-1, 1, 1, 1), torch.zeros(3, dtype=torch.long)
    found = agreement(Values(0.7), Values(0.5), Batches(x, y, 3), attack=Up(0.3)).attacked
    assert (found.broke.tolist(), found.transferred.tolist()) == ([False, True, True], [False, False, True])


def test_examples_outside_the_ball_break_nobody():
    x, y = torch.tensor([0.35, 0.45]).view(-1, 1, 1, 1), torch.zeros(2, dtype=torch.long)
    found = agreement(Values(0.5), Values(0.5), Batches(x, y, 2), attack=Up(0.3, eps=0.1)).attacked
    assert not found.broke.any()
    assert [record.metric for record in found.records()] == ["agreement under up"]  # a share of nothing is no share


# --- contract ---


def test_figures_do_not_depend_on_the_batches():
    x, y = images()
    attack = PGD(Threat("linf", 0.2), steps=3)
    one, other = (agreement(Linear(seed=1), Linear(seed=2), Batches(x, y, size), attack=attack) for size in (40, 7))
    assert one.kl == pytest.approx(other.kl, rel=1e-5, abs=1e-7)
    for name in ("student", "teacher", "broke", "transferred"):
        assert getattr(one.attacked, name).tolist() == getattr(other.attacked, name).tolist()
    assert one.student.ece == pytest.approx(other.student.ece, abs=1e-6)


def test_nothing_of_the_networks_changes():
    student, teacher = Linear(seed=1), Linear(seed=2)
    student.train()
    student.norm.eval()
    student.fc.weight.grad = torch.ones_like(student.fc.weight)
    teacher.eval().requires_grad_(False)
    before = state(student), state(teacher)
    agreement(student, teacher, Batches(*images(), 16), attack=PGD(Threat("linf", 0.2), steps=2))
    assert_untouched(before[0], student)
    assert_untouched(before[1], teacher)


def test_it_works_under_inference_mode():
    student, teacher = Linear(seed=1), Linear(seed=2)
    with torch.inference_mode():
        x, y = images()
        found = agreement(student, teacher, Batches(x, y, 16), attack=PGD(Threat("linf", 0.2), steps=2))
    assert len(found.kl) == 40


def test_what_cannot_be_compared_is_refused_in_a_sentence():
    x, y = images()
    batches = Batches(x, y, 16)
    with pytest.raises(ValueError, match=r"student tells 5 classes apart, the teacher 4: agreement needs"):
        agreement(Linear(classes=5), Linear(), batches)
    with pytest.raises(ValueError, match=r"Labels go from 0 to 4, the student has 4 classes"):
        agreement(Linear(), Linear(), Batches(x, y + (y == 3).long(), 40))
    with pytest.raises(ValueError, match="teacher's logits are not finite"):
        agreement(Linear(), Linear(scale=float("nan")), batches)
    with pytest.raises(ValueError, match="no images"):
        agreement(Linear(), Linear(), [])
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        agreement(Linear(), Linear(), batches, temperature=0)
