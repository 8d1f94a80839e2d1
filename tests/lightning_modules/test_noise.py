"""Noise from its definitions: distributions by tests of fixed seeds, what it may depend on, and whom it reaches."""

import math
import warnings
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from formulas import Double, ce, check, crafted, kd, kl, log_p, sharpen, shown
from hypothesis import given
from hypothesis import strategies as st
from regime_helpers import (
    DISTILLERS,
    FACTS,
    REGIMES,
    build,
    digits,
    name,
    pgd,
    trainer,
)
from scipy import stats
from torch import Tensor, nn

from datamodules import Batch
from lightning_modules import (
    AKD,
    ARD,
    RSLAD,
    AdaAD,
    DefensiveDistillation,
    Distillation,
    FastARD,
    FickleTeacher,
    InputNoise,
    LabelCorruption,
    Noise,
    SignalDependentNoise,
    Swap,
    Teacher,
    TeacherSource,
    TfKDSelf,
)
from lightning_modules.noise import Moment

T = 3.0
C = FACTS.classes
MANY = 20_000
LIKELY = 1e-4  # what a test of a true hypothesis falls below once in 10,000 seeds


def moment(count: int = MANY, words: tuple[int, ...] = (0,), epoch: int = 0, step: int = 0) -> Moment:
    return Moment(torch.arange(count), words, epoch, step)


def labels(count: int = MANY) -> Tensor:
    return torch.arange(count) % C


def outcome(source: Noise, when: Moment, only: Tensor | None = None) -> Tensor:
    """What a source makes of the labels, images or answers of those images, by index."""
    index = when.index
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(4096, 1, 4, 4, generator=generator)[index % 4096]
    z = torch.randn(4096, C, generator=generator)[index % 4096]
    if isinstance(source, LabelCorruption):
        return source.on_labels(index % C, C, when)
    if isinstance(source, InputNoise):
        return source.on_images(x, when)
    return source.on_answer(z, T, when)


SOURCES = [
    LabelCorruption(0.5),
    LabelCorruption(0.5, fixed=True),
    InputNoise(0.1),
    SignalDependentNoise(0.2),
    Swap(0.5, threshold=0.5),
    Swap(0.5, which="all", threshold=0.5),
]


def called(source: Noise) -> str:
    return type(source).__name__ + "".join(f"-{value}" for value in vars(source).values())


EVERY = pytest.mark.parametrize("source", SOURCES, ids=called)


def independent(one: Tensor, other: Tensor) -> bool:
    """By a chi-square test of two yes-or-no variables."""
    table = [[int(((one == a) & (other == b)).sum()) for b in (False, True)] for a in (False, True)]
    return stats.chi2_contingency(table).pvalue > LIKELY


# Label corruption


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("fixed", [False, True])
def test_so_many_labels_are_corrupted(p, fixed):
    y = labels()
    changed = int((LabelCorruption(p, fixed).on_labels(y, C, moment()) != y).sum())
    assert stats.binomtest(changed, MANY, p).pvalue > LIKELY


def test_a_corrupted_label_is_uniform_over_the_other_classes():
    y = labels()
    found = LabelCorruption(1.0).on_labels(y, C, moment())
    assert (found != y).all()
    assert found.dtype == y.dtype
    assert found.min() == 0
    assert found.max() == C - 1
    steps = torch.bincount((found - y) % C, minlength=C)
    assert steps[0] == 0
    assert stats.chisquare(steps[1:]).pvalue > LIKELY
    for label in range(C):  # from whichever class
        assert stats.chisquare(torch.bincount(found[y == label], minlength=C)[torch.arange(C) != label]).pvalue > LIKELY


@given(st.integers(2, 20), st.floats(0, 1), st.integers(0, 2**31), st.integers(0, 500))
def test_a_corrupted_label_is_another_class_or_the_label(classes, p, seed, epoch):
    y = torch.arange(200) % classes
    found = LabelCorruption(p).on_labels(y, classes, moment(200, (seed,), epoch))
    assert ((found >= 0) & (found < classes)).all()
    if p == 0:
        assert torch.equal(found, y)
    if p == 1:
        assert (found != y).all()


def test_two_classes_leave_one_other():
    y = torch.arange(100) % 2
    assert torch.equal(LabelCorruption(1.0).on_labels(y, 2, moment(100)), 1 - y)


def test_which_label_is_corrupted_does_not_tell_which_class_it_becomes():
    """One draw for both would: at p = 0.5 those that are corrupted would have small draws alone."""
    y = labels()
    for p in (0.1, 0.5):
        found = LabelCorruption(p).on_labels(y, C, moment())
        steps = torch.bincount((found - y)[found != y] % C, minlength=C)
        assert stats.chisquare(steps[1:]).pvalue > LIKELY


def test_labels_are_corrupted_anew_in_every_epoch_but_not_within_one():
    y = labels()
    source = LabelCorruption(0.5)
    first, second = (source.on_labels(y, C, moment(epoch=epoch)) for epoch in (0, 1))
    assert torch.equal(source.on_labels(y, C, moment(step=100)), first)
    assert not torch.equal(first, second)
    assert independent(first != y, second != y)
    both = (first != y) & (second != y)
    same = int((first == second)[both].sum())
    assert stats.binomtest(same, int(both.sum()), 1 / (C - 1)).pvalue > LIKELY


def test_fixed_keeps_the_first_draw():
    y = labels()
    source = LabelCorruption(0.5, fixed=True)
    first = source.on_labels(y, C, moment())
    for epoch, step in ((0, 7), (1, 100), (199, 10_000)):
        assert torch.equal(source.on_labels(y, C, moment(epoch=epoch, step=step)), first)
    assert not torch.equal(source.on_labels(y, C, moment(words=(1,))), first)


# Noise on images


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_input_noise_is_normal_and_independent(sigma):
    x = torch.full((2000, 1, 4, 4), 0.5)
    d = (InputNoise(sigma).on_images(x, moment(2000)) - x).double() / sigma
    assert stats.kstest(d.flatten().numpy(), "norm").pvalue > LIKELY
    flat = d.flatten(1).numpy()
    for i, j in ((0, 1), (0, 15), (7, 8)):  # from value to value, and from image to image
        assert stats.pearsonr(flat[:, i], flat[:, j]).pvalue > LIKELY
    assert stats.pearsonr(flat[:-1].ravel(), flat[1:].ravel()).pvalue > LIKELY


def test_input_noise_is_not_clamped():
    x = torch.cat([torch.zeros(500, 1, 4, 4), torch.ones(500, 1, 4, 4)])
    found = InputNoise(0.5).on_images(x, moment(1000))
    assert (found < 0).any()
    assert (found > 1).any()
    assert stats.kstest(((found - x) / 0.5).flatten().double().numpy(), "norm").pvalue > LIKELY


# Noise on the teacher's answer


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_signal_dependent_noise_is_relative_to_every_logit(sigma):
    z = torch.empty(4000, C).uniform_(0.1, 30) * torch.where(torch.rand(4000, C) < 0.5, -1, 1)
    found = SignalDependentNoise(sigma).on_answer(z, T, moment(4000))
    d = ((found / z - 1) / sigma).double()
    assert stats.kstest(d.flatten().numpy(), "norm").pvalue > 1e-3
    for i, j in ((0, 1), (0, 9)):
        assert stats.pearsonr(d[:, i].numpy(), d[:, j].numpy()).pvalue > LIKELY
    # as strong for small logits as for large ones
    small = z.abs() < 15
    assert stats.ks_2samp(d[small].numpy(), d[~small].numpy()).pvalue > LIKELY


def test_a_logit_of_zero_has_no_noise_and_the_temperature_does_not_matter():
    z = torch.randn(50, C)
    z[:, 3] = 0
    source = SignalDependentNoise(0.5)
    found = source.on_answer(z, T, moment(50))
    assert (found[:, 3] == 0).all()
    assert torch.equal(source.on_answer(z, 20.0, moment(50)), found)


def swapped(z: Tensor, t: float, which: str, threshold: float) -> tuple[Tensor, float]:
    """Paper 004, A.4, sample by sample: the logits with their places exchanged.

    Also how near any difference came to the threshold, where rounding decides.
    """
    result, near = z.clone(), math.inf
    for row in result:
        p = log_p(row[None].double(), t).exp()[0].tolist()
        order = sorted(range(len(p)), key=lambda c: -p[c])
        pairs = [(order[0], order[1])] if which == "top2" else list(pairwise(order))
        for here, there in pairs:
            difference = abs(p[here] - p[there])
            near = min(near, abs(difference - threshold))
            if difference < threshold:
                p[here], p[there] = p[there], p[here]
                row[here], row[there] = float(row[there]), float(row[here])
    return result, near


@st.composite
def answers(draw):
    """Logits without ties; a threshold; a temperature."""
    classes, seed = draw(st.integers(2, 12)), draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    z = torch.randn(8, classes, generator=torch.Generator().manual_seed(seed)) * scale
    return z, draw(st.sampled_from([1.0, 4.0, 20.0])), draw(st.sampled_from([0.01, 0.1, 0.5, 1.0]))


@given(answers(), st.sampled_from(["top2", "all"]))
def test_swap(problem, which):
    z, t, threshold = problem
    expected, near = swapped(z, t, which, threshold)
    found = Swap(1.0, which, threshold).on_answer(z, t, moment(len(z)))
    assert torch.equal(found.sort(1).values, z.sort(1).values)  # a permutation
    if near > 1e-6:
        assert torch.equal(found, expected)


def test_swap_by_hand():
    z = torch.tensor([[0.50, 0.30, 0.15, 0.05]]).log()
    one = moment(1)
    assert torch.equal(Swap(1.0, threshold=0.1).on_answer(z, 1.0, one), z)
    assert torch.equal(Swap(1.0, threshold=0.25).on_answer(z, 1.0, one), z[:, [1, 0, 2, 3]])
    # 0.15 and 0.05 alone
    assert torch.equal(Swap(1.0, "all", 0.12).on_answer(z, 1.0, one), z[:, [0, 1, 3, 2]])
    # 0.5 is carried as far as the difference allows: over 0.30, not over 0.15 from 0.5; 0.15 and 0.05 change places
    assert torch.equal(Swap(1.0, "all", 0.21).on_answer(z, 1.0, one), z[:, [1, 0, 3, 2]])
    # over all of them
    assert torch.equal(Swap(1.0, "all", 0.46).on_answer(z, 1.0, one), z[:, [1, 2, 3, 0]])


def test_the_softened_probabilities_are_compared():
    """At t = 1 they differ by 0.96, at t = 20 by 0.1."""
    z = torch.tensor([[4.0, 0.0]])
    for t, swaps in ((1.0, False), (20.0, True)):
        found = Swap(1.0, threshold=0.11).on_answer(z, t, moment(1))
        assert torch.equal(found, z[:, [1, 0]] if swaps else z)


def test_differences_as_large_as_the_threshold_stay():
    z = torch.tensor([[0.75, 0.25]]).log2()  # exactly 0.5 at this temperature
    found = Swap(1.0, threshold=0.5).on_answer(z, 1 / math.log(2), moment(1))
    assert log_p(z.double(), 1 / math.log(2)).exp().diff().abs() == pytest.approx(0.5)
    assert torch.equal(found, z) or torch.equal(found, z[:, [1, 0]])  # one rounding decides
    assert torch.equal(Swap(1.0, threshold=0.499).on_answer(z, 1 / math.log(2), moment(1)), z)


@pytest.mark.parametrize("which", ["top2", "all"])
@pytest.mark.parametrize("p", [0.25, 0.5])
def test_so_many_images_are_swapped(which, p):
    """Each wholly or not at all."""
    z = torch.randn(4000, C) * 0.1
    whole, _ = swapped(z, T, which, 0.1)
    found = Swap(p, which, 0.1).on_answer(z, T, moment(4000))
    moved = (found != z).any(1)
    assert torch.equal(found, torch.where(moved[:, None], whole, z))
    assert stats.binomtest(int(moved.sum()), 4000, p).pvalue > LIKELY


def test_swap_takes_the_threshold_of_the_readme_unless_given():
    assert vars(Swap(0.5))["threshold"] == 0.1
    assert vars(Swap(0.5))["which"] == "top2"


# What all draws have in common


@EVERY
def test_the_same_moment_gives_the_same_noise_whatever_was_drawn_elsewhere(source):
    first = outcome(source, moment(500))
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(outcome(source, moment(500)), first)


@EVERY
def test_an_images_noise_does_not_depend_on_its_batch(source):
    """Neither on its order, nor on its size, nor on who else is in it."""
    index = torch.randperm(4096)[:300]
    whole = outcome(source, Moment(index, (0,), 3, 17))
    for part in (torch.randperm(300), torch.tensor([5]), torch.arange(100, 133)):
        torch.testing.assert_close(outcome(source, Moment(index[part], (0,), 3, 17)), whole[part], rtol=0, atol=1e-6)


@EVERY
def test_images_differ_from_each_other(source):
    """Images that are alike in all but their index."""
    index = torch.arange(512) * 4096 * C
    found = outcome(source, Moment(index, (0,), 0, 0))
    assert len({tuple(row.flatten().tolist()) for row in found}) > 1


@EVERY
def test_runs_sources_and_steps_differ(source):
    first = outcome(source, moment(500))
    assert not torch.equal(outcome(source, moment(500, (1,))), first)
    assert not torch.equal(outcome(source, moment(500, (0, 1))), first)
    later = outcome(source, moment(500, epoch=1, step=40))
    assert torch.equal(later, first) == (isinstance(source, LabelCorruption) and source.fixed)
    next_step = outcome(source, moment(500, step=1))
    assert torch.equal(next_step, first) == isinstance(source, LabelCorruption)


@pytest.mark.parametrize(
    "source", [LabelCorruption(0.0), LabelCorruption(0.0, True), InputNoise(0.0), SignalDependentNoise(0.0), Swap(0.0)]
)
def test_no_noise_is_none(source):
    index = torch.arange(500)
    changed = outcome(source, moment(500))
    plain = outcome(type(source)(0.0), Moment(index, (9,), 5, 5))
    assert torch.equal(changed, plain)
    if isinstance(source, LabelCorruption):
        assert torch.equal(changed, index % C)
    z, x = torch.randn(500, C), torch.rand(500, 1, 4, 4)
    assert torch.equal(source.on_answer(z, T, moment(500)), z)
    assert torch.equal(source.on_images(x, moment(500)), x)
    assert torch.equal(source.on_labels(index % C, C, moment(500)), index % C)


@EVERY
def test_a_source_leaves_alone_what_is_not_its_own(source):
    x, y, z = torch.rand(50, 1, 4, 4), labels(50), torch.randn(50, C)
    kept = (x.clone(), y.clone(), z.clone())
    touched = [
        not torch.equal(source.on_images(x, moment(50)), x),
        not torch.equal(source.on_labels(y, C, moment(50)), y),
        not torch.equal(source.on_answer(z, T, moment(50)), z),
    ]
    assert sum(touched) == 1
    assert all(torch.equal(one, other) for one, other in zip((x, y, z), kept, strict=True))  # not in place


# In a regime


def noisy(*sources: Noise, **kwargs: Any) -> Teacher:
    return build(Teacher, noise=list(sources), **kwargs)


def many(count: int = 4000) -> Batch:
    """Grey images of every class."""
    return Batch(torch.full((count, *FACTS.shape), 0.5), labels(count), torch.arange(count))


def test_a_batch_still_holds_its_images_without_noise(batch):
    found = noisy(InputNoise(0.1)).disturbed(batch)
    assert not torch.equal(found.x, batch.x)
    assert torch.equal(found.clean, batch.x)
    assert torch.equal(found.y, batch.y)
    assert torch.equal(found.index, batch.index)
    assert torch.equal(batch.clean, batch.x)


def test_two_sources_add_up_independently():
    """Two of the same draws would have twice the deviation, two independent ones its square root."""
    plain = many()
    both = (noisy(InputNoise(0.1), InputNoise(0.1)).disturbed(plain).x - 0.5).double()
    assert stats.kstest((both / (0.1 * math.sqrt(2))).flatten()[:50_000].numpy(), "norm").pvalue > LIKELY


def test_two_sources_of_labels_are_independent():
    plain = many()
    regime = noisy(LabelCorruption(0.4), LabelCorruption(0.4))
    one, other = (source.on_labels(plain.y, C, when) for source, when in regime.moments(plain))
    assert independent(one != plain.y, other != plain.y)
    kept = int((regime.disturbed(plain).y == plain.y).sum())
    # kept by both, or corrupted and drawn back: 0.6 * 0.6 + 0.4 * 0.4 / 9
    assert stats.binomtest(kept, len(plain.y), 0.36 + 0.16 / 9).pvalue > LIKELY


def test_sources_of_two_kinds_are_independent_of_each_other_and_of_the_attack():
    plain = many()
    regime = noisy(LabelCorruption(0.5), InputNoise(0.1))
    found = regime.disturbed(plain)
    corrupted = found.y != plain.y
    noise = (found.x - plain.x).flatten(1)
    draws = regime.draws(plain).stream(0).uniform(FACTS.shape).flatten(1)
    straight = regime.draws(plain).uniform(FACTS.shape).flatten(1)
    for column in range(3):
        assert independent(corrupted, noise[:, column] > 0)
        for attack in (draws, straight):
            assert independent(corrupted, attack[:, column] > 0.5)
            assert stats.pearsonr(noise[:, column].numpy(), attack[:, column].numpy()).pvalue > LIKELY


def test_the_order_of_sources_is_the_lists(mlp_teacher, batch):
    """Logit noise before a swap is not a swap before logit noise."""
    first, second = SignalDependentNoise(0.5), Swap(1.0, threshold=1.0)
    one = build(Distillation, mlp_teacher, noise=[first, second])
    z = one.teacher.module(batch.x)
    expected = z
    for source, when in one.moments(batch):
        expected = source.on_answer(expected, one.temperature, when)
    assert torch.equal(one.taught(batch), expected)
    other = build(Distillation, mlp_teacher, noise=[second, first])
    assert not torch.equal(other.taught(batch), expected)


def test_runs_of_two_seeds_differ(monkeypatch):
    plain = many(200)
    first = noisy(LabelCorruption(0.5)).disturbed(plain).y
    assert torch.equal(noisy(LabelCorruption(0.5)).disturbed(plain).y, first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(noisy(LabelCorruption(0.5)).disturbed(plain).y, first)


def test_steps_and_epochs_differ_in_a_regime(monkeypatch):
    plain, regime = many(200), noisy(LabelCorruption(0.5), InputNoise(0.1))
    first = regime.disturbed(plain)
    monkeypatch.setattr(type(regime), "global_step", 1)
    second = regime.disturbed(plain)
    monkeypatch.setattr(type(regime), "current_epoch", 1)
    third = regime.disturbed(plain)
    assert torch.equal(first.y, second.y)
    assert not torch.equal(second.y, third.y)
    assert not torch.equal(first.x, second.x)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_soft_randomization(batch, mlp_teacher, alpha):
    """004 eq. 2: the student is trained on x + d, its teacher is asked about x."""
    regime = sharpen(build(Distillation, mlp_teacher, alpha=alpha, temperature=T, noise=[InputNoise(0.2)]))
    (_, when), *_ = regime.moments(batch)
    x = InputNoise(0.2).on_images(batch.x, when)
    assert (x - batch.x).abs().max() > 0.1
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, regime.disturbed(batch), lambda net: kd(z_t, net(x), net(x), batch.y, alpha, T))


CLEAN_TAUGHT = [regime for regime in DISTILLERS if regime not in (AKD, AdaAD)]


@pytest.mark.parametrize("regime", CLEAN_TAUGHT, ids=name)
def test_the_teacher_sees_the_images_without_noise(batch, mlp_teacher, regime):
    """Wherever it is asked about x; IAD, past its warm-up, asks about x' too."""
    built = build(regime, mlp_teacher, noise=[InputNoise(0.2)])
    given = built.disturbed(batch)
    with shown(built.teacher.module) as asked, shown(built.network) as seen:
        built.step(given, 0)
    assert [torch.equal(x, batch.x) for x in asked] == [True]
    assert not any(torch.equal(x, batch.x) for x in seen)


def test_akds_and_adaads_teachers_on_clean_images(batch, mlp_teacher):
    for built in (
        build(AKD, mlp_teacher, teacher_sees="clean", noise=[InputNoise(0.2)]),
        build(AdaAD, mlp_teacher, alpha=0.5, noise=[InputNoise(0.2)]),
        build(TfKDSelf, mlp_teacher, attack=pgd(), noise=[InputNoise(0.2)]),
    ):
        given = built.disturbed(batch)
        with shown(built.teacher.module) as asked:
            built.step(given, 0)
        assert sum(torch.equal(x, batch.x) for x in asked) == 1
        assert not any(torch.equal(x, given.x) for x in asked)


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_every_regime_takes_noise_on_images_and_labels(batch, mlp_teacher, regime):
    """In a real fit, on the student's side alone, and the step gets the disturbed batch."""
    built = build(regime, mlp_teacher, noise=[InputNoise(0.1), LabelCorruption(1.0)])
    given: list[Batch] = []
    step = built.step
    built.step = lambda batch, batch_idx: given.append(batch) or step(batch, batch_idx)
    built._trainer = None
    built.log = built.log_dict = lambda *args, **kwargs: None
    built.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=0)
    loss = built.training_step(batch, 0)
    (found,) = given
    assert loss.isfinite()
    assert (found.y != batch.y).all()
    assert not torch.equal(found.x, batch.x)
    assert torch.equal(found.clean, batch.x)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_loss_is_of_the_corrupted_labels(batch, mlp_teacher, alpha):
    regime = sharpen(build(Distillation, mlp_teacher, alpha=alpha, temperature=T, noise=[LabelCorruption(1.0)]))
    (_, when), *_ = regime.moments(batch)
    y = LabelCorruption(1.0).on_labels(batch.y, C, when)
    assert (y != batch.y).all()
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, regime.disturbed(batch), lambda net: kd(z_t, net(batch.x), net(batch.x), y, alpha, T))


class Watch(pl.Callback):
    """Labels of every step, by image; and the losses beside what they have to be."""

    def __init__(self) -> None:
        self.labels: dict[int, dict[int, int]] = {}
        self.truth: dict[int, int] = {}
        self.pairs: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        given = pl_module.disturbed(batch)
        epoch = self.labels.setdefault(trainer.current_epoch, {})
        epoch |= dict(zip(batch.index.tolist(), given.y.tolist(), strict=True))
        self.truth |= dict(zip(batch.index.tolist(), batch.y.tolist(), strict=True))
        self.expected = float(ce(Double(pl_module.network)(batch.x), given.y))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.pairs.append((float(outputs["loss"]), self.expected))


@pytest.mark.parametrize("fixed", [False, True])
def test_corruption_in_a_trainer(tmp_path, fixed):
    watch = Watch()
    regime = noisy(LabelCorruption(0.5, fixed))
    trainer(tmp_path, callbacks=[watch], max_epochs=2, limit_train_batches=1.0).fit(regime, digits(200))
    assert [found for found, _ in watch.pairs] == pytest.approx([wanted for _, wanted in watch.pairs], rel=1e-4)
    shared = sorted(watch.labels[0].keys() & watch.labels[1].keys())
    first, second = (torch.tensor([watch.labels[epoch][i] for i in shared]) for epoch in (0, 1))
    truth = torch.tensor([watch.truth[i] for i in shared])
    assert torch.equal(first, second) == fixed
    assert stats.binomtest(int((first != truth).sum()), len(shared), 0.5).pvalue > LIKELY
    assert fixed or independent(first != truth, second != truth)


def test_validation_is_unaffected(mlp_teacher, tmp_path):
    """Neither its images, nor its labels, nor what is attacked."""
    sources = [LabelCorruption(1.0), InputNoise(1.0), SignalDependentNoise(1.0), Swap(1.0)]
    clean, disturbed = (build(ARD, mlp_teacher, noise=noise) for noise in ([], sources))
    disturbed.load_state_dict(clean.state_dict())
    for stage in ("validate", "test"):
        figures = [
            getattr(trainer(tmp_path, limit_test_batches=1), stage)(regime, digits(), verbose=False)[0]
            for regime in (clean, disturbed)
        ]
        assert figures[0] == figures[1]


def test_predictions_are_unaffected(batch):
    regime = noisy(InputNoise(1.0)).eval()
    assert torch.equal(regime(batch.x), regime.network(batch.x))


# Whom it is for


@pytest.mark.parametrize("regime", [regime for regime in REGIMES if regime not in DISTILLERS], ids=name)
@pytest.mark.parametrize("source", [SignalDependentNoise(0.1), FickleTeacher(), Swap(0.5)], ids=called)
def test_noise_on_a_teacher_is_refused_without_one(regime, source):
    with pytest.raises(ValueError, match=f"{type(source).__name__} .*{regime.__name__}") as caught:
        build(regime, noise=[InputNoise(0.1), source])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("regime", DISTILLERS, ids=name)
@pytest.mark.parametrize("source", [SignalDependentNoise(0.5), Swap(1.0, "all", 1.0), FickleTeacher()], ids=called)
def test_every_distillers_student_hears_the_noise(batch, wrn_teacher, regime, source):
    quiet, built = (build(regime, wrn_teacher, noise=noise) for noise in ([], [source]))
    built.load_state_dict(quiet.state_dict())
    built.setup("fit")
    assert not torch.equal(built.taught(batch), quiet.taught(batch))
    assert not torch.allclose(built.step(batch, 0)[0], quiet.step(batch, 0)[0], rtol=1e-6, atol=0)


def test_the_answers_temperature_is_the_kls(batch, mlp_teacher):
    """What a swap compares are the probabilities that the student is taught."""
    for t in (1.0, 8.0):
        regime = build(Distillation, mlp_teacher, temperature=t, noise=[Swap(1.0, "all", 0.05)])
        z = regime.teacher.module(batch.x)
        expected, near = swapped(z, t, "all", 0.05)
        assert near > 1e-6
        assert torch.equal(regime.taught(batch), expected)


@pytest.mark.parametrize("source", [SignalDependentNoise(0.4), Swap(1.0, "all", 0.5)], ids=called)
def test_distillation_from_a_noisy_answer(batch, mlp_teacher, source):
    regime = sharpen(build(Distillation, mlp_teacher, alpha=0.9, temperature=T, noise=[source]))
    (_, when), *_ = regime.moments(batch)
    z_t = source.on_answer(regime.teacher.module(batch.x), T, when).double()
    assert not torch.equal(z_t.float(), regime.teacher.module(batch.x))
    check(regime, batch, lambda net: kd(z_t, net(batch.x), net(batch.x), batch.y, 0.9, T))


def test_defensive_distillation_from_a_noisy_answer(batch, mlp_teacher):
    source = SignalDependentNoise(0.4)
    regime = build(DefensiveDistillation, mlp_teacher, temperature=5.0, noise=[source])
    (_, when), *_ = regime.moments(batch)
    p = log_p(source.on_answer(regime.teacher.module(batch.x), 5.0, when).double(), 5.0).exp()
    check(regime, batch, lambda net: -(p * log_p(net(batch.x), 5.0)).sum() / len(batch.y))


def test_rslads_search_and_loss_hear_the_same_answer(batch, mlp_teacher):
    source = SignalDependentNoise(0.4)
    regime = sharpen(build(RSLAD, mlp_teacher, alpha=0.6, noise=[source]))
    (_, when), *_ = regime.moments(batch)
    heard = source.on_answer(regime.teacher.module(batch.x), 1.0, when)
    x_adv = crafted(regime, batch, y=heard.softmax(1), loss="kl")
    z_t = heard.double()
    check(regime, batch, lambda net: 0.6 * kl(z_t, net(x_adv)) + 0.4 * kl(z_t, net(batch.x)))


# Fickle teacher


def test_a_fickle_teacher_answers_anew_each_time(batch, wrn_teacher):
    regime = build(Distillation, wrn_teacher, noise=[FickleTeacher()])
    regime.setup("fit")
    first, second = regime.taught(batch), regime.taught(batch)
    assert not torch.equal(first, second)
    assert {type(part) for part in regime.teacher.module.modules() if part.training} == {nn.Dropout}
    assert not first.requires_grad


def test_a_fickle_teachers_dropout_has_its_own_rate():
    """A linear teacher of dropout p: the answer's mean is that without dropout, its variance p / (1 - p) sum (w x)²."""
    p = 0.25
    network = nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.Linear(FACTS.size**2, C, bias=False))
    regime = build(Distillation, TeacherSource(module=network), noise=[FickleTeacher()])
    regime.setup("fit")
    x = torch.rand(1, *FACTS.shape)
    samples = regime.taught(Batch(x.expand(5000, -1, -1, -1), labels(5000), torch.arange(5000))).double()
    terms = (network[2].weight * x.flatten()).double()
    deviation = (p / (1 - p) * (terms**2).sum(1)).sqrt()
    scores = (samples.mean(0) - terms.sum(1)) / (deviation / math.sqrt(5000))
    assert scores.abs().max() < 4.5
    torch.testing.assert_close(samples.std(0), deviation, rtol=0.06, atol=0)


def test_a_teacher_without_dropout_cannot_be_fickle(mlp_teacher):
    with pytest.raises(ValueError, match="no dropout"):
        build(Distillation, mlp_teacher, noise=[FickleTeacher()]).setup("fit")


def test_two_students_of_one_source_do_not_share_a_fickle_teacher(wrn_teacher, batch):
    """The dropout of one is not active in the other."""
    fickle, firm = build(Distillation, wrn_teacher, noise=[FickleTeacher()]), build(Distillation, wrn_teacher)
    fickle.setup("fit")
    firm.setup("fit")
    assert torch.equal(firm.taught(batch), firm.taught(batch))


# Arguments


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *((partial(LabelCorruption, p), f"{p}") for p in (-0.1, 1.1, math.nan)),
        *((partial(Swap, p), f"{p}") for p in (-0.1, 1.1, math.nan)),
        *((partial(InputNoise, s), f"{s}") for s in (-0.1, math.nan)),
        *((partial(SignalDependentNoise, s), f"{s}") for s in (-0.1, math.nan)),
        (partial(Swap, 0.5, which="top3"), "top3"),
        (partial(Swap, 0.5, threshold=-0.1), "-0.1"),
    ],
    ids=lambda value: f"{value.func.__name__}-{value.args}" if isinstance(value, partial) else str(value),
)
def test_refused_arguments(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        source()
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [LabelCorruption(1.0), InputNoise(0.0), SignalDependentNoise(3.0), Swap(1.0, "all")])
def test_the_ends_of_the_ranges_are_allowed(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome(source, moment(100))


# Noise that nobody hears


@pytest.mark.parametrize(
    ("regime", "options", "heard"),
    [
        (Distillation, {"alpha": 1.0}, False),
        (Distillation, {"alpha": 0.9}, True),
        (DefensiveDistillation, {}, False),
        (ARD, {"alpha": 1.0}, True),  # by the attack
        (FastARD, {"alpha": 1.0}, False),
        (FastARD, {"alpha": 1.0, "delta_loss": "ce"}, True),
        (RSLAD, {}, False),
        (AdaAD, {}, False),
        (TfKDSelf, {"alpha": 1.0}, False),
        (Teacher, {}, True),
    ],
    ids=name,
)
def test_corrupted_labels_that_have_no_word_are_warned_of(mlp_teacher, regime, options, heard):
    built = build(regime, mlp_teacher, noise=[LabelCorruption(0.5)], **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built.on_fit_start()
    assert ["LabelCorruption changes nothing" in str(entry.message) for entry in caught] == [True] * (not heard)
