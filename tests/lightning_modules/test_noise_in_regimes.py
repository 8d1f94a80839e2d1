"""Noise in training: whom it reaches, what is then learnt from, and who is not served by it."""

import math
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from formulas import Double, ce, check, crafted, kd, kl, log_p, sharpen, shown
from noise_helpers import LIKELY, C, T, called, independent, labels, swapped
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
from torch import nn

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
