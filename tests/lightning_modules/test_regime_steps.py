"""What each regime's step returns, held against the formulas of the papers in float64, and what it costs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from formulas import Double, ce, check, crafted, kd, kl, log_p, sharpen, shown, smooth, soft_ce
from regime_helpers import (
    DISTILLERS,
    FACTS,
    REGIMES,
    STEPS,
    THREAT,
    build,
    digits,
    fickle_wrn,
    mlp,
    name,
    pgd,
    trainer,
)
from torch import Tensor, nn

from datamodules import Batch
from lightning_modules import (
    AKD,
    ARD,
    FGSMRS,
    IAD,
    NFGSM,
    RSLAD,
    TRADES,
    AdaAD,
    AdversarialTraining,
    DefensiveDistillation,
    Distillation,
    FastARD,
    FickleTeacher,
    FreeAdversarialTraining,
    Regime,
    ReversedKD,
    SelfDistillation,
    Teacher,
    TfKDReg,
    TfKDSelf,
)

T = 3.0
ALPHA = pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_teacher(batch, temperature):
    regime = build(Teacher, temperature=temperature)
    check(regime, batch, lambda net: ce(net(batch.x), batch.y, temperature))
    assert regime.trained_at == temperature


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_gives_the_label_one_less_s_and_the_others_an_equal_share(batch, temperature, smoothing):
    regime = sharpen(build(Teacher, temperature=temperature, smoothing=smoothing))
    q = smooth(batch.y, 1 - smoothing)
    assert torch.allclose(q.sum(1), torch.ones(len(q), dtype=torch.float64))
    check(regime, batch, lambda net: soft_ce(q, net(batch.x), temperature))


@ALPHA
@pytest.mark.parametrize(("option", "ce_t"), [(1, 1.0), ("t", T)])
def test_distillation(batch, mlp_teacher, alpha, option, ce_t):
    regime = build(Distillation, mlp_teacher, alpha=alpha, temperature=T, ce_temperature=option)
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: kd(z_t, net(batch.x), net(batch.x), batch.y, alpha, T, ce_t))


@pytest.mark.parametrize("student_temperature", [None, 1.0, 5.0])
def test_defensive_distillation_has_soft_labels_alone_and_no_factor(batch, mlp_teacher, student_temperature):
    """The soft labels are taken at T whatever the student is trained at (20 flavours)."""
    regime = build(DefensiveDistillation, mlp_teacher, temperature=20.0, student_temperature=student_temperature)
    p = log_p(Double(regime.teacher.module)(batch.x), 20.0).exp()
    t = 20.0 if student_temperature is None else student_temperature
    check(regime, batch, lambda net: soft_ce(p, net(batch.x), t))
    assert regime.trained_at == t


def test_a_fickle_teacher_is_distillation_from_one_sample(batch, wrn_teacher):
    regime = build(Distillation, wrn_teacher, noise=[FickleTeacher()], alpha=0.9, temperature=T)
    regime.setup("fit")
    torch.manual_seed(5)
    z_t = regime.teacher.module(batch.x).double()
    torch.manual_seed(5)
    check(regime, batch, lambda net: kd(z_t, net(batch.x), net(batch.x), batch.y, 0.9, T))


@ALPHA
@pytest.mark.parametrize(("option", "ce_t"), [(1, 1.0), ("t", T)])
def test_ard(batch, mlp_teacher, alpha, option, ce_t):
    regime = build(ARD, mlp_teacher, alpha=alpha, temperature=T, ce_temperature=option)
    z_t = Double(regime.teacher.module)(batch.x)
    x_adv = crafted(regime, batch)
    check(regime, batch, lambda net: kd(z_t, net(x_adv), net(batch.x), batch.y, alpha, T, ce_t))


def test_the_temperature_of_ards_attack(batch, mlp_teacher):
    """At small steps the sign of the gradient does not forgive a wrong temperature."""
    regime = sharpen(build(ARD, mlp_teacher, alpha=0.9, temperature=30.0, attack_temperature="t"), 2)
    x_adv = crafted(regime, batch, t=30.0)
    assert not torch.equal(x_adv, crafted(regime, batch))
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: kd(z_t, net(x_adv), net(batch.x), batch.y, 0.9, 30.0))


@pytest.mark.parametrize("regime", [Distillation, ARD, AKD, FastARD], ids=name)
def test_the_mean_reduction_divides_the_kl_by_the_classes_too(batch, wrn_teacher, regime):
    losses = {}
    for reduction in ("batchmean", "mean"):
        for alpha in (0.4, 1.0):
            torch.manual_seed(0)
            built = build(regime, wrn_teacher, alpha=alpha, kl_reduction=reduction)
            losses[reduction, alpha] = built.step(batch, 0)[0].detach()
    torch.testing.assert_close(losses["mean", 1.0], losses["batchmean", 1.0] / FACTS.classes)
    # 0.4 KL / C + 0.6 CE, where 0.4 KL + 0.6 CE and KL are known.
    cross_entropy = losses["batchmean", 0.4] - 0.4 * losses["batchmean", 1.0]
    torch.testing.assert_close(losses["mean", 0.4], 0.4 * losses["mean", 1.0] + cross_entropy)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("delta_loss", ["ard", "ce"])
def test_fast_ard(batch, mlp_teacher, alpha, delta_loss):
    regime = build(FastARD, mlp_teacher, alpha=alpha, temperature=T, delta_loss=delta_loss)
    delta = torch.empty_like(batch.x).uniform_(-0.15, 0.15)
    regime.delta = delta.clone()
    z_t = Double(regime.teacher.module)(batch.x)
    x_adv = (batch.x + delta).clamp(0, 1)
    check(regime, batch, lambda net: kd(z_t, net(x_adv), net(batch.x), batch.y, alpha, T))


def test_adversarial_training(batch):
    regime = build(AdversarialTraining)
    x_adv = crafted(regime, batch)
    assert not torch.equal(x_adv, batch.x)
    check(regime, batch, lambda net: ce(net(x_adv), batch.y))


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_trades_and_that_its_target_is_not_detached(batch, beta):
    regime = build(TRADES, beta=beta)
    p = regime.network(batch.x).detach().softmax(1)
    x_adv = crafted(regime, batch, y=p, loss="kl")
    check(regime, batch, lambda net: ce(net(batch.x), batch.y) + beta * kl(net(batch.x), net(x_adv)))


# What a step costs


@dataclass
class Cost:
    """Passes through a network: a forward whose output a gradient flows back to is followed by a backward."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def passes(module: nn.Module) -> Iterator[Cost]:
    """Counts the passes of a module inside."""
    cost = Cost()

    def back(gradient: Tensor) -> None:
        cost.backwards += 1

    def forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        cost.forwards += 1
        if output.requires_grad:
            output.register_hook(back)

    handle = module.register_forward_hook(forward)
    try:
        yield cost
    finally:
        handle.remove()


def cost_of(regime: Regime, batch: Batch) -> tuple[Cost, Cost]:
    """Of a step and its backward: the student's passes and the teacher's."""
    for source in regime.noise:
        source.on_teacher(regime.teacher)
    teacher = regime.teacher.answering(batch.x) if type(regime) in DISTILLERS else nn.Identity()
    with passes(regime.network) as student, passes(teacher) as asked:
        loss, _ = regime.step(batch, 0)
        loss.backward()
    return student, asked


K = STEPS
IGDM = {"igdm": 1.0}
# Regime, options, and the passes: student's forwards and backwards, teacher's forwards and backwards.
COSTS: list[tuple[type[Regime], dict[str, Any], tuple[int, int, int, int]]] = [
    (Teacher, {}, (1, 1, 0, 0)),
    (Teacher, {"smoothing": 0.1}, (1, 1, 0, 0)),
    (Distillation, {"alpha": 1.0}, (1, 1, 1, 0)),
    (Distillation, {"alpha": 0.5}, (1, 1, 1, 0)),
    (Distillation, {"alpha": 0.0}, (1, 1, 0, 0)),
    (Distillation, {"alpha": 0.5, "noise": [FickleTeacher()]}, (1, 1, 1, 0)),
    (Distillation, {"alpha": 0.0, "noise": [FickleTeacher()]}, (1, 1, 0, 0)),
    (ReversedKD, {"alpha": 1.0}, (1, 1, 1, 0)),
    (ReversedKD, {}, (1, 1, 1, 0)),
    (ReversedKD, {"alpha": 0.0}, (1, 1, 0, 0)),
    (DefensiveDistillation, {}, (1, 1, 1, 0)),
    (DefensiveDistillation, {"student_temperature": 1.0}, (1, 1, 1, 0)),
    (SelfDistillation, {}, (1, 1, 0, 0)),
    (TfKDSelf, {}, (1, 1, 1, 0)),
    (TfKDSelf, {"alpha": 0.0}, (1, 1, 0, 0)),
    (TfKDSelf, {"compat": "yuan2020"}, (1, 1, 1, 0)),
    (TfKDSelf, {"attack": pgd()}, (K + 1, K + 1, 1, 0)),
    (TfKDSelf, {"attack": pgd(), "alpha": 0.0}, (K + 1, K + 1, 0, 0)),
    (TfKDReg, {}, (1, 1, 0, 0)),
    (TfKDReg, {"compat": "yuan2020"}, (1, 1, 0, 0)),
    (TfKDReg, {"attack": pgd()}, (K + 1, K + 1, 0, 0)),
    (AdversarialTraining, {}, (K + 1, K + 1, 0, 0)),
    (FGSMRS, {}, (2, 2, 0, 0)),
    (NFGSM, {}, (2, 2, 0, 0)),
    (FreeAdversarialTraining, {}, (1, 1, 0, 0)),
    (TRADES, {}, (K + 3, K + 2, 0, 0)),  # one of the forwards is the attack's target
    (FastARD, {"alpha": 1.0}, (1, 1, 1, 0)),
    (FastARD, {"alpha": 0.5}, (2, 2, 1, 0)),
    (FastARD, {"alpha": 1.0, "delta_loss": "ce"}, (1, 2, 1, 0)),
    (FastARD, {"alpha": 0.5, "delta_loss": "ce"}, (2, 3, 1, 0)),
    (ARD, {"alpha": 1.0}, (K + 1, K + 1, 1, 0)),
    (ARD, {"alpha": 0.5}, (K + 2, K + 2, 1, 0)),
    (ARD, {"alpha": 0.0}, (1, 1, 0, 0)),
    (ARD, {"attack": pgd(restarts=1, steps=2 * K)}, (2 * K + 1, 2 * K + 1, 1, 0)),
    (AKD, {"alpha": 1.0}, (K + 1, K + 1, 1, 0)),
    (AKD, {"alpha": 0.5}, (K + 1, K + 1, 1, 0)),
    (AKD, {"alpha": 0.5, "teacher_sees": "clean"}, (K + 1, K + 1, 1, 0)),
    (AKD, {"alpha": 0.0}, (K + 1, K + 1, 0, 0)),
    (RSLAD, {"alpha": 1.0}, (K + 1, K + 1, 1, 0)),
    (RSLAD, {}, (K + 2, K + 2, 1, 0)),
    (RSLAD, {"alpha": 0.0}, (1, 1, 1, 0)),  # as ARD, it crafts no example that has no weight
    (IAD, {"alpha": 1.0}, (K + 1, K + 1, 1, 0)),  # in the warm-up, as ARD
    (IAD, {"alpha": 0.5}, (K + 2, K + 2, 1, 0)),
    (IAD, {"alpha": 0.0}, (1, 1, 0, 0)),
    (IAD, {"alpha": 1.0, "warmup": 0}, (K + 2, K + 2, 2, 0)),
    (IAD, {"alpha": 0.5, "warmup": 0}, (K + 2, K + 2, 2, 0)),
    (IAD, {"alpha": 0.0, "warmup": 0}, (K + 2, K + 2, 1, 0)),  # the teacher is asked whether it is deceived
    (AdaAD, {"alpha": 1.0}, (K + 1, K + 1, K + 1, K)),
    (AdaAD, {"alpha": 0.5}, (K + 2, K + 2, K + 2, K)),
    (AdaAD, {"alpha": 0.0}, (1, 1, 1, 0)),
    # IGDM: both at x - d, and the teacher at x' where the method does not ask it for that
    (ARD, {"alpha": 1.0} | IGDM, (K + 2, K + 2, 3, 0)),
    (ARD, {"alpha": 0.5} | IGDM, (K + 3, K + 3, 3, 0)),
    (ARD, {"alpha": 0.0} | IGDM, (K + 3, K + 3, 2, 0)),
    (AKD, {"alpha": 0.5} | IGDM, (K + 2, K + 2, 2, 0)),
    (AKD, {"alpha": 0.5, "teacher_sees": "clean"} | IGDM, (K + 2, K + 2, 3, 0)),
    (AKD, {"alpha": 0.0} | IGDM, (K + 2, K + 2, 2, 0)),
    (RSLAD, IGDM, (K + 3, K + 3, 3, 0)),
    (RSLAD, {"alpha": 1.0} | IGDM, (K + 2, K + 2, 3, 0)),
    (IAD, {"alpha": 1.0} | IGDM, (K + 2, K + 2, 3, 0)),
    (IAD, {"alpha": 1.0, "warmup": 0} | IGDM, (K + 3, K + 3, 3, 0)),
    (AdaAD, {"alpha": 1.0} | IGDM, (K + 2, K + 2, K + 2, K)),
    (AdaAD, {"alpha": 0.5} | IGDM, (K + 3, K + 3, K + 3, K)),
]


def described(value: Any) -> str:
    """An entry of that table among a test's parameters; parallel workers must agree on it, so no object's address."""
    if isinstance(value, dict):
        given = {
            key: type(entry[0]).__name__ if isinstance(entry, list) else str(getattr(entry, "name", entry))
            for key, entry in value.items()
        }
        return "-".join(f"{key}={entry}" for key, entry in given.items()) or "default"
    return name(value).replace(" ", "")


@pytest.mark.parametrize(("regime", "options", "expected"), COSTS, ids=described)
def test_passes_per_step(batch, wrn_teacher, regime, options, expected):
    student, teacher = cost_of(build(regime, wrn_teacher, **options), batch)
    assert (student.forwards, student.backwards, teacher.forwards, teacher.backwards) == expected


def test_every_regime_is_counted():
    assert {regime for regime, *_ in COSTS} == set(REGIMES)


TERM = r"([K\d][K\d +]*?)"
PASSES = rf"{TERM} forwards?(?:, {TERM} backwards?\b)?"
LINE = rf"Per step: student {PASSES}(?:.*?; teacher {PASSES})?"


def stated(regime: type[Regime]) -> tuple[int, ...]:
    """The numbers of the docstring's own line ``Per step: student K + 1 forwards, …; teacher …``."""
    paragraphs = [" ".join(part.split()) for part in (regime.__dict__.get("__doc__") or "").split("\n\n")]
    lines = [part for part in paragraphs if part.startswith("Per step: ")]
    assert len(lines) == 1, f"{regime.__name__} does not say what a step costs"
    found = re.match(LINE, lines[0])
    assert found is not None, lines[0]
    # "K + 1": a sum of K's and numbers
    return tuple(sum(K if word == "K" else int(word) for word in (part or "0").split(" + ")) for part in found.groups())


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_the_docstring_says_what_a_step_costs(batch, wrn_teacher, regime):
    """IAD's base numbers are those after its warm-up."""
    options = {"warmup": 0} if regime is IAD else {}
    student, teacher = cost_of(build(regime, wrn_teacher, **options), batch)
    assert stated(regime) == (student.forwards, student.backwards, teacher.forwards, teacher.backwards)


@pytest.mark.parametrize("replays", [1, 3])
@pytest.mark.parametrize(
    ("regime", "options", "expected"),
    [(FreeAdversarialTraining, {}, (1, 1)), (FastARD, {"alpha": 1.0}, (1, 1)), (FastARD, {"alpha": 0.5}, (2, 2))],
    ids=described,
)
def test_passes_of_a_mini_batchs_replays(wrn_teacher, tmp_path, regime, options, expected, replays):
    """The teacher is asked once, the student as often as the mini-batch is seen."""
    built = build(regime, wrn_teacher, replays=replays, folding=False, **options)
    built.setup("fit")  # whose probe of the teacher is a forward too
    teacher = built.teacher.module if regime is FastARD else nn.Identity()
    starts: list[Tensor] = []

    class Seen(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            starts.append(batch.index)

    fit = trainer(tmp_path, callbacks=[Seen()], limit_train_batches=2 * replays, limit_val_batches=0)
    with passes(built.network) as student, passes(teacher) as asked:
        fit.fit(built, digits(64))
    assert len(starts) == 2 * replays
    assert len({tuple(index.tolist()) for index in starts}) == 2
    assert (student.forwards, student.backwards) == tuple(2 * replays * count for count in expected)
    assert (asked.forwards, asked.backwards) == (2 * (regime is FastARD), 0)


@pytest.mark.parametrize(
    ("regime", "options"),
    [
        (ARD, {"alpha": 1.0}),
        (AKD, {"alpha": 1.0}),
        (AKD, {"alpha": 0.5}),
        (RSLAD, {"alpha": 1.0}),
        (IAD, {"alpha": 1.0}),
        (AdaAD, {"alpha": 1.0}),
        *((regime, {"alpha": 1.0} | IGDM) for regime in (ARD, AKD, RSLAD, IAD, AdaAD)),
        (TfKDSelf, {"attack": pgd()}),
        (TfKDReg, {"attack": pgd()}),
        (AdversarialTraining, {}),
        (FGSMRS, {}),
        (NFGSM, {}),
    ],
    ids=described,
)
def test_at_alpha_one_the_student_is_shown_no_clean_image(batch, mlp_teacher, regime, options):
    built = build(regime, mlp_teacher, **options)
    with shown(built.network) as seen:
        built.step(batch, 0)
    assert seen
    # No image of it, in whichever place: PGD's start has moved all of them.
    assert not any((x[:, None] == batch.x[None]).flatten(2).all(2).any() for x in seen)


# Draws


@pytest.mark.parametrize("regime", [ARD, AdversarialTraining, AKD, IAD, FGSMRS, NFGSM], ids=name)
def test_an_images_example_does_not_depend_on_its_batch(batch, mlp_teacher, regime):
    built = build(regime, mlp_teacher)
    order = torch.randperm(len(batch.y))
    part = Batch(batch.x[order][:5], batch.y[order][:5], batch.index[order][:5])
    torch.testing.assert_close(built.craft(batch)[order][:5], built.craft(part), rtol=0, atol=1e-6)


def test_draws_differ_between_steps_and_seeds(batch, monkeypatch):
    regime = build(AdversarialTraining)
    first = regime.draws(batch).uniform((4,))
    assert torch.equal(regime.draws(batch).uniform((4,)), first)
    monkeypatch.setattr(type(regime), "global_step", 1)
    assert not torch.equal(regime.draws(batch).uniform((4,)), first)
    monkeypatch.undo()
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(build(AdversarialTraining).draws(batch).uniform((4,)), first)


# Arguments


@pytest.mark.parametrize(
    ("regime", "options", "message"),
    [
        (Teacher, {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        (Teacher, {"smoothing": -0.1}, "-0.1"),
        (Teacher, {"smoothing": 0.95}, "0.95"),
        (Teacher, {"smoothing": float("nan")}, "nan"),
        (Distillation, {"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        (Distillation, {"alpha": -0.5}, r"alpha must lie in \[0, 1\], got -0.5"),
        (Distillation, {"temperature": -4.0}, "temperature must be positive, got -4.0"),
        (DefensiveDistillation, {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        (DefensiveDistillation, {"student_temperature": -1.0}, "student_temperature must be positive, got -1.0"),
        (DefensiveDistillation, {"student_temperature": 0.0}, "student_temperature must be positive, got 0.0"),
        (FastARD, {"replays": 0}, "replays must be at least 1, got 0"),
        (FreeAdversarialTraining, {"replays": 0}, "replays must be at least 1, got 0"),
        (TRADES, {"beta": -1.0}, "beta must be at least 0, got -1.0"),
        (TRADES, {"attack": pgd()}, "loss: kl"),
        (TRADES, {"attack": pgd(loss="kl", random_start=False)}, "random_start: true"),
    ],
    ids=described,
)
def test_refused_arguments(mlp_teacher, regime, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(regime, mlp_teacher, **options)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


# What a regime fixes is no option of it.
FIXED = {(DefensiveDistillation, "alpha"), (RSLAD, "temperature"), (AdaAD, "temperature")}


@pytest.mark.parametrize(
    ("regime", "key", "value"),
    [
        (regime, key, value)
        for regime in DISTILLERS
        for key, value in (("alpha", 1.5), ("alpha", -0.25), ("temperature", 0.0))
        if (regime, key) not in FIXED
    ],
    ids=name,
)
def test_every_distiller_refuses_weights_and_temperatures(mlp_teacher, regime, key, value):
    with pytest.raises(ValueError, match=f"{key} must .* got {value}"):
        build(regime, mlp_teacher, **{key: value})


def test_the_attack_gets_the_datasets_box(mlp_teacher):
    facts = FACTS.to_dict() | {"box": [-1.0, 2.0]}
    assert build(FastARD, mlp_teacher, facts=facts).threat.bounds == (-1.0, 2.0)
    assert THREAT.box is None


CRAFTING = (AKD, ARD, FGSMRS, IAD, NFGSM, RSLAD, TRADES, AdaAD, AdversarialTraining)


@pytest.mark.parametrize("regime", [*CRAFTING, FreeAdversarialTraining, TfKDReg, TfKDSelf], ids=name)
def test_every_attack_gets_the_datasets_box(mlp_teacher, regime):
    facts = FACTS.to_dict() | {"box": [-1.0, 2.0]}
    options = {"attack": pgd()} if regime in (TfKDReg, TfKDSelf) else {}
    assert build(regime, mlp_teacher, facts=facts, **options).threat.bounds == (-1.0, 2.0)


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_what_chooses_the_best_checkpoint(mlp_teacher, regime):
    built = build(regime, mlp_teacher)
    adversarial = regime in (*CRAFTING, FastARD, FreeAdversarialTraining)
    assert (built.threat is not None) == adversarial
    assert built.monitor == ("val/robust_acc" if adversarial else "val/acc")


@pytest.mark.parametrize("regime", [TfKDReg, TfKDSelf], ids=name)
def test_an_optional_attack_chooses_the_best_checkpoint_too(mlp_teacher, regime):
    built = build(regime, mlp_teacher, attack=pgd())
    assert built.threat == THREAT.within(FACTS.box)
    assert built.monitor == "val/robust_acc"


@pytest.mark.parametrize("network", [mlp, fickle_wrn])
def test_forward_is_the_network(batch, network):
    regime = build(Teacher, network=network).eval()
    assert torch.equal(regime(batch.x), regime.network(batch.x))
