"""Distillation on adversarial examples, held against the papers' formulas in float64, on examples crafted here."""

import copy
import inspect
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from formulas import Double, ce, check, crafted, kd, kl, log_p, sharpen, shown
from regime_helpers import (
    FACTS,
    STEPS,
    THREAT,
    assert_identical,
    build,
    digits,
    everything,
    fickle_wrn,
    name,
    pgd,
    trainer,
)
from torch import Tensor, nn

from datamodules import Batch
from lightning_modules import AKD, ARD, IAD, RSLAD, AdaAD, Regime, SignalDependentNoise, TeacherSource

T = 3.0
ALPHA = pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
CE_T = pytest.mark.parametrize(("option", "ce_t"), [(1, 1.0), ("t", T)])
FIVE = pytest.mark.parametrize("regime", [AKD, ARD, RSLAD, IAD, AdaAD], ids=name)
EPS = float(THREAT.eps)


def at_epoch(monkeypatch: pytest.MonkeyPatch, regime: Regime, epoch: int) -> None:
    monkeypatch.setattr(type(regime), "current_epoch", epoch)


def searched(regime: Regime, batch: Batch, teacher: str = "differentiated", steps: int = STEPS) -> Tensor:
    """AdaAD's search, step by step: up the sign of the gradient of ``KL(p(z_T(x')) || p(z_S(x')))``.

    Args:
        regime: whose networks and draws are used.
        batch: the images.
        teacher: ``differentiated``; or, so as to see the difference, ``detached`` at x', or ``clean``: at x.
        steps: K.
    """
    z_s, z_t = copy.deepcopy(regime.network).eval(), copy.deepcopy(regime.teacher.module).eval()
    start = regime.draws(batch).stream(0).uniform(batch.x.shape[1:], -EPS, EPS)
    x_adv = (batch.x + start).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        target = log_p(z_t(batch.x if teacher == "clean" else x_adv))
        target = target if teacher == "differentiated" else target.detach()
        value = (target.exp() * (target - log_p(z_s(x_adv)))).sum()
        (gradient,) = torch.autograd.grad(value, x_adv)
        moved = x_adv.detach() + 2.5 * EPS / steps * gradient.sign()
        x_adv = torch.minimum(torch.maximum(moved, batch.x - EPS), batch.x + EPS).clamp(0, 1)
    return x_adv


def igdm(z_t: Double, z_s: Double, x: Tensor, x_adv: Tensor) -> Tensor:
    """``KL(p(z_T(x + d) - z_T(x - d)) || p(z_S(x + d) - z_S(x - d)))``; x - d may lie outside the box."""
    away = x - (x_adv - x)
    return kl(z_t(x_adv) - z_t(away), z_s(x_adv) - z_s(away))


# AKD


@ALPHA
@CE_T
@pytest.mark.parametrize("sees", ["adversarial", "clean"])
def test_akd(batch, mlp_teacher, alpha, option, ce_t, sees):
    """Both terms are on x'; the teacher is shown x' as well, or x."""
    regime = build(AKD, mlp_teacher, alpha=alpha, temperature=T, ce_temperature=option, teacher_sees=sees)
    sharpen(regime)
    x_adv = crafted(regime, batch)
    z_t = Double(regime.teacher.module)(x_adv if sees == "adversarial" else batch.x)
    check(regime, batch, lambda net: kd(z_t, net(x_adv), net(x_adv), batch.y, alpha, T, ce_t))


def test_akds_teacher_sees_adversarial_images_unless_told_otherwise(batch, mlp_teacher):
    for sees in ({}, {"teacher_sees": "adversarial"}, {"teacher_sees": "clean"}):
        regime = build(AKD, mlp_teacher, alpha=0.5, **sees)
        with shown(regime.teacher.module) as seen:
            regime.step(batch, 0)
        (x,) = seen
        assert torch.equal(x, batch.x if sees.get("teacher_sees") == "clean" else crafted(regime, batch))


# ARD


@ALPHA
@CE_T
@pytest.mark.parametrize("tempered", [1, "t"])
def test_ard(batch, mlp_teacher, alpha, option, ce_t, tempered):
    regime = build(ARD, mlp_teacher, alpha=alpha, temperature=T, ce_temperature=option, attack_temperature=tempered)
    sharpen(regime, 2)
    x_adv = crafted(regime, batch, t=T if tempered == "t" else 1.0)
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: kd(z_t, net(x_adv), net(batch.x), batch.y, alpha, T, ce_t))


def test_the_attack_follows_its_own_options(batch, mlp_teacher):
    """Another number of steps, their length, and no random start: x' is that of the attack that was given."""
    for options in ({"steps": 5}, {"step_size": 0.01}, {"random_start": False}, {"loss": "margin"}):
        regime = sharpen(build(ARD, mlp_teacher, alpha=0.5, temperature=T, attack=pgd(**options)))
        x_adv = crafted(regime, batch, **options)
        assert not torch.equal(x_adv, crafted(regime, batch))
        z_t = Double(regime.teacher.module)(batch.x)
        check(regime, batch, lambda net, z_t=z_t, x=x_adv: kd(z_t, net(x), net(batch.x), batch.y, 0.5, T))


# RSLAD


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, None])
def test_rslad(batch, mlp_teacher, alpha):
    """The teacher's word on x everywhere: in the search, on x' and on x; a = 5/6 unless given."""
    regime = sharpen(build(RSLAD, mlp_teacher, **{} if alpha is None else {"alpha": alpha}))
    z_t = Double(regime.teacher.module)(batch.x)
    x_adv = crafted(regime, batch, y=regime.teacher.module(batch.x).softmax(1), loss="kl")
    a = 5 / 6 if alpha is None else alpha
    check(regime, batch, lambda net: a * kl(z_t, net(x_adv)) + (1 - a) * kl(z_t, net(batch.x)))


def test_rslads_labels_have_no_word(batch, mlp_teacher):
    regime = build(RSLAD, mlp_teacher)
    other = Batch(batch.x, (batch.y + 1) % FACTS.classes, batch.index)
    assert torch.equal(regime.step(batch, 0)[0], regime.step(other, 0)[0])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("regime", [RSLAD, AdaAD], ids=name)
def test_the_mean_reduction_divides_both_kls(batch, mlp_teacher, regime, alpha):
    whole, part = (
        build(regime, mlp_teacher, alpha=alpha, kl_reduction=reduction) for reduction in ("batchmean", "mean")
    )
    part.load_state_dict(whole.state_dict())
    torch.testing.assert_close(part.step(batch, 0)[0] * FACTS.classes, whole.step(batch, 0)[0])


@pytest.mark.parametrize("regime", [RSLAD, AdaAD], ids=name)
def test_regimes_at_temperature_one_are_trained_at_it(mlp_teacher, regime):
    assert build(regime, mlp_teacher).trained_at == 1.0


# IAD


def trusted(regime: Regime, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """``p_T(y given x')^b``, image by image."""
    p = log_p(Double(regime.teacher.module)(x_adv)).exp()
    return torch.stack([p[i, int(c)] ** beta for i, c in enumerate(y)])


def introspection(trust: Tensor, clean: Tensor, adversarial: Tensor) -> Tensor:
    each = (log_p(clean).exp() * (log_p(clean) - log_p(adversarial))).sum(1)
    return ((1 - trust) * each).sum() / len(each)


@ALPHA
@CE_T
@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
def test_iad_after_the_warm_up(batch, mlp_teacher, alpha, option, ce_t, beta):
    """ARD's loss and the introspection, whose target gets gradients too; t is ARD's alone."""
    regime = build(IAD, mlp_teacher, alpha=alpha, temperature=T, ce_temperature=option, beta=beta, warmup=0)
    sharpen(regime)
    x_adv = crafted(regime, batch)
    z_t = Double(regime.teacher.module)(batch.x)
    trust = trusted(regime, x_adv, batch.y, beta)
    assert (trust == 1).all() if beta == 0 else (trust < 1).any()

    def reference(net: Double) -> Tensor:
        clean, adversarial = net(batch.x), net(x_adv)
        ard = kd(z_t, adversarial, clean, batch.y, alpha, T, ce_t)
        return ard + introspection(trust, clean, adversarial)

    check(regime, batch, reference)


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_iads_own_term_is_a_mean_over_images(batch, mlp_teacher, reduction):
    """Whatever divides ARD's KL."""
    regime = sharpen(build(IAD, mlp_teacher, alpha=1.0, temperature=T, warmup=0, kl_reduction=reduction))
    x_adv = crafted(regime, batch)
    z_t = Double(regime.teacher.module)(batch.x)
    trust = trusted(regime, x_adv, batch.y, 0.1)
    divisor = FACTS.classes if reduction == "mean" else 1

    def reference(net: Double) -> Tensor:
        ard = T * T * kl(z_t, net(x_adv), T) / divisor
        return ard + introspection(trust, net(batch.x), net(x_adv))

    check(regime, batch, reference)


def test_iads_tempered_attack(batch, mlp_teacher):
    regime = build(IAD, mlp_teacher, alpha=0.5, temperature=30.0, attack_temperature="t", warmup=0)
    sharpen(regime, 2)
    x_adv = crafted(regime, batch, t=30.0)
    z_t, trust = Double(regime.teacher.module)(batch.x), trusted(regime, x_adv, batch.y, 0.1)
    check(
        regime,
        batch,
        lambda net: (
            kd(z_t, net(x_adv), net(batch.x), batch.y, 0.5, 30.0) + introspection(trust, net(batch.x), net(x_adv))
        ),
    )


@ALPHA
@pytest.mark.parametrize(("warmup", "epoch", "warm"), [(60, 0, True), (60, 59, True), (60, 60, False), (3, 9, False)])
def test_iads_warm_up_is_ards(batch, mlp_teacher, monkeypatch, alpha, warmup, epoch, warm):
    """Epochs count from 0: of 60, the last is number 59."""
    options = {"alpha": alpha, "temperature": T}
    regime = sharpen(build(IAD, mlp_teacher, **options, **{} if warmup == 60 else {"warmup": warmup}))
    ard = build(ARD, mlp_teacher, **options)
    ard.load_state_dict(regime.state_dict())
    at_epoch(monkeypatch, regime, epoch)
    assert torch.equal(regime.step(batch, 0)[0], ard.step(batch, 0)[0]) == warm


def test_iads_beta_of_zero_is_ard(batch, mlp_teacher):
    regime = sharpen(build(IAD, mlp_teacher, alpha=0.5, beta=0.0, warmup=0))
    ard = build(ARD, mlp_teacher, alpha=0.5)
    ard.load_state_dict(regime.state_dict())
    torch.testing.assert_close(regime.step(batch, 0)[0], ard.step(batch, 0)[0])


def test_an_image_that_deceives_its_teacher_wholly_counts_wholly(batch):
    """p_T(y given x') = 0 in float32: 0^b is 0, and its logarithm is not asked for."""
    sure = nn.Sequential(nn.Flatten(), nn.Linear(FACTS.size**2, FACTS.classes))
    nn.init.zeros_(sure[1].weight)
    with torch.no_grad():
        sure[1].bias.copy_(torch.eye(FACTS.classes)[0] * 1e4)
    assert (batch.y != 0).any()
    regime = sharpen(build(IAD, TeacherSource(module=sure), alpha=0.0, warmup=0))
    x_adv = crafted(regime, batch)
    trust = (batch.y == 0).double()
    check(
        regime,
        batch,
        lambda net: ce(net(batch.x), batch.y) + introspection(trust, net(batch.x), net(x_adv)),
    )


# AdaAD


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_adaad(batch, mlp_teacher, alpha):
    regime = sharpen(build(AdaAD, mlp_teacher, alpha=alpha))
    x_adv = searched(regime, batch)
    z_t = Double(regime.teacher.module)
    check(
        regime,
        batch,
        lambda net: alpha * kl(z_t(x_adv), net(x_adv)) + (1 - alpha) * kl(z_t(batch.x), net(batch.x)),
    )


def test_adaad_at_alpha_zero_is_distillation_at_temperature_one(batch, mlp_teacher):
    regime = sharpen(build(AdaAD, mlp_teacher, alpha=0.0))
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: kl(z_t, net(batch.x)))


def test_adaads_weight_is_one_unless_given(batch, mlp_teacher):
    given, default = build(AdaAD, mlp_teacher, alpha=1.0), build(AdaAD, mlp_teacher)
    given.load_state_dict(default.state_dict())
    assert torch.equal(given.step(batch, 0)[0], default.step(batch, 0)[0])


@pytest.mark.parametrize("steps", [1, STEPS])
def test_adaads_search_differentiates_the_teacher(batch, mlp_teacher, steps):
    """It finds what the loop above finds; one that holds the teacher still, at x' or at x, finds something else."""
    regime = sharpen(build(AdaAD, mlp_teacher, attack=pgd(loss="kl", steps=steps)))
    with shown(regime.network) as seen, shown(regime.teacher.module) as asked:
        regime.step(batch, 0)
    expected = searched(regime, batch, steps=steps)
    torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(asked[-1], expected, rtol=0, atol=1e-6)
    for other in ("detached", "clean"):
        assert (searched(regime, batch, other, steps) - expected).abs().max() > EPS / 2
    assert THREAT.holds(seen[-1], batch.x).all()
    assert (seen[-1] >= 0).all()
    assert (seen[-1] <= 1).all()


def test_adaads_search_raises_what_it_climbs(batch, mlp_teacher):
    regime = sharpen(build(AdaAD, mlp_teacher))
    with shown(regime.network) as seen:
        regime.step(batch, 0)
    z_s, z_t = Double(regime.network), Double(regime.teacher.module)
    values = [kl(z_t(x), z_s(x)) for x in (batch.x, searched(regime, batch, "clean"), seen[-1])]
    assert values[2] > values[1] > values[0]


def test_adaads_labels_have_no_word(batch, mlp_teacher):
    regime = build(AdaAD, mlp_teacher, alpha=0.5)
    other = Batch(batch.x, (batch.y + 1) % FACTS.classes, batch.index)
    assert torch.equal(regime.step(batch, 0)[0], regime.step(other, 0)[0])


def state(module: nn.Module) -> dict[str, Any]:
    """Modes, gradients and what wants one."""
    return {
        **{f"mode of {key}": part.training for key, part in module.named_modules()},
        **{f"requires_grad of {key}": p.requires_grad for key, p in module.named_parameters()},
        **{f"grad of {key}": p.grad for key, p in module.named_parameters()},
    }


@FIVE
@pytest.mark.parametrize("batchnorm", ["eval", "train"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_teacher_is_untouched_by_a_step(batch, wrn_teacher, regime, batchnorm, weight):
    """Not a weight, not a buffer, not a mode, not a gradient, however the student is crafted on; nor is the student's
    state by the crafting, but for what its own forwards in train mode move.
    """
    attack = pgd(batchnorm=batchnorm, loss="kl" if regime in (RSLAD, AdaAD) else "ce")
    built = build(regime, wrn_teacher, network=fickle_wrn, attack=attack, igdm=weight, alpha=0.5)
    teacher = built.teacher.module
    before, flags, student = everything(teacher), state(teacher), state(built.network)
    loss, _ = built.step(batch, 0)
    assert state(built.network) == student
    loss.backward()
    assert_identical(everything(teacher), before)
    assert state(teacher) == flags
    assert not any(value for key, value in flags.items() if not key.startswith("grad"))
    assert all(parameter.grad is not None for parameter in built.network.parameters())


@FIVE
def test_a_steps_loss_is_the_same_twice(batch, mlp_teacher, regime):
    """All that is drawn follows from seed, step and image."""
    built = build(regime, mlp_teacher, igdm=1.0)
    assert torch.equal(built.step(batch, 0)[0], built.step(batch, 0)[0])


@FIVE
def test_under_autocast_the_loss_stays_near(batch, mlp_teacher, regime):
    built = build(regime, mlp_teacher, alpha=0.5, igdm=1.0)
    exact = built.step(batch, 0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = built.step(batch, 0)[0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.02)


# IGDM


def method(regime: Regime, batch: Batch, alpha: float) -> tuple[Any, Tensor]:
    """The method's own loss, written out, and its x'."""
    z_t, y = Double(regime.teacher.module), batch.y
    if isinstance(regime, AdaAD):
        x = searched(regime, batch)
        return (lambda net: alpha * kl(z_t(x), net(x)) + (1 - alpha) * kl(z_t(batch.x), net(batch.x))), x
    if isinstance(regime, RSLAD):
        clean = z_t(batch.x)
        x = crafted(regime, batch, y=regime.teacher.module(batch.x).softmax(1), loss="kl")
        return (lambda net: alpha * kl(clean, net(x)) + (1 - alpha) * kl(clean, net(batch.x))), x
    x = crafted(regime, batch)
    if isinstance(regime, AKD):
        heard = z_t(batch.x if regime.teacher_sees == "clean" else x)
        return (lambda net: kd(heard, net(x), net(x), y, alpha, T)), x
    heard = z_t(batch.x)
    if isinstance(regime, IAD):
        trust = trusted(regime, x, y, 0.1)
        return (
            lambda net: kd(heard, net(x), net(batch.x), y, alpha, T) + introspection(trust, net(batch.x), net(x))
        ), x
    return (lambda net: kd(heard, net(x), net(batch.x), y, alpha, T)), x


CASES = [(AKD, {}), (AKD, {"teacher_sees": "clean"}), (ARD, {}), (RSLAD, {}), (IAD, {"warmup": 0}), (AdaAD, {})]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("regime", "options"), CASES, ids=lambda value: name(value).replace(" ", ""))
def test_igdm_is_added_to_each(batch, mlp_teacher, regime, options, alpha):
    tempered = {} if regime in (RSLAD, AdaAD) else {"temperature": T}
    built = sharpen(build(regime, mlp_teacher, alpha=alpha, igdm=0.7, **tempered, **options))
    own, x_adv = method(built, batch, alpha)
    z_t = Double(built.teacher.module)
    term = igdm(z_t, Double(built.network), batch.x, x_adv)
    assert term > 0.01  # it shows
    check(built, batch, lambda net: own(net) + 0.7 * igdm(z_t, net, batch.x, x_adv))


@pytest.mark.parametrize(("regime", "options"), CASES, ids=lambda value: name(value).replace(" ", ""))
def test_igdm_of_weight_zero_is_the_method(batch, mlp_teacher, regime, options):
    without, given = (build(regime, mlp_teacher, alpha=0.4, **options, **more) for more in ({}, {"igdm": 0.0}))
    given.load_state_dict(without.state_dict())
    assert torch.equal(without.step(batch, 0)[0], given.step(batch, 0)[0])


@FIVE
def test_igdms_opposite_image_is_not_clamped(batch, mlp_teacher, regime):
    """x - d is as far on the other side, wherever the box ends."""
    built = build(regime, mlp_teacher, igdm=1.0, alpha=1.0)
    with shown(built.network) as student, shown(built.teacher.module) as teacher:
        built.step(batch, 0)

    def opposite(seen: list[Tensor]) -> bool:
        # some pair of the images shown has x in its middle
        pairs = ((one, other) for one in seen for other in seen if not torch.equal(one, other))
        return any(torch.allclose(one + other, 2 * batch.x, rtol=0, atol=1e-6) for one, other in pairs)

    assert opposite(student)
    assert opposite(teacher)
    assert any((x < 0).any() for x in student)


@pytest.mark.parametrize(("epoch", "epochs"), [(0, 1), (0, 10), (4, 10), (9, 10)])
@FIVE
def test_igdms_weight_grows_with_the_epoch(batch, mlp_teacher, monkeypatch, regime, epoch, epochs):
    """By (epoch + 1) / epochs: the whole of it in the last."""
    options = {"warmup": 0} if regime is IAD else {}
    without = sharpen(build(regime, mlp_teacher, alpha=0.5, **options))
    built = build(regime, mlp_teacher, alpha=0.5, igdm=2.0, **options)
    built.load_state_dict(without.state_dict())
    assert built.epochs == 1  # outside a trainer
    with shown(without.network) as seen:
        base = without.step(batch, 0)[0]
    whole = built.step(batch, 0)[0] - base
    assert whole > 0.01
    assert seen
    at_epoch(monkeypatch, built, epoch)
    built.epochs = epochs
    torch.testing.assert_close(built.step(batch, 0)[0] - base, whole * (epoch + 1) / epochs, rtol=1e-3, atol=1e-5)


class Expected(pl.Callback):
    """At every batch, what the loss has to be from the weights as they are, and what it was."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference
        self.expected: list[float] = []
        self.found: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.expected.append(float(self.reference(pl_module, batch, trainer.current_epoch)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.found.append(float(outputs["loss"]))


def test_igdms_weight_in_a_trainer(mlp_teacher, tmp_path):
    def reference(regime: Regime, batch: Batch, epoch: int) -> Tensor:
        own, x_adv = method(regime, batch, 0.5)
        net = Double(regime.network)
        return own(net) + 2 * (epoch + 1) / 4 * igdm(Double(regime.teacher.module), net, batch.x, x_adv)

    callback = Expected(reference)
    regime = sharpen(build(ARD, mlp_teacher, alpha=0.5, temperature=T, igdm=2.0))
    trainer(tmp_path, max_epochs=4, limit_train_batches=2, callbacks=[callback]).fit(regime, digits())
    assert len(callback.found) == 8
    assert regime.epochs == 4
    assert callback.found == pytest.approx(callback.expected, rel=1e-3)


def test_iads_warm_up_in_a_trainer(mlp_teacher, tmp_path):
    """Two epochs of ARD, then the whole loss."""

    def reference(regime: Regime, batch: Batch, epoch: int) -> Tensor:
        x_adv, net, z_t = crafted(regime, batch), Double(regime.network), Double(regime.teacher.module)(batch.x)
        ard = kd(z_t, net(x_adv), net(batch.x), batch.y, 0.5, T)
        if epoch < 2:
            return ard
        return ard + introspection(trusted(regime, x_adv, batch.y, 0.1), net(batch.x), net(x_adv))

    callback = Expected(reference)
    regime = sharpen(build(IAD, mlp_teacher, alpha=0.5, temperature=T, warmup=2))
    trainer(tmp_path, max_epochs=3, limit_train_batches=2, callbacks=[callback]).fit(regime, digits())
    assert len(callback.found) == 6
    assert callback.found == pytest.approx(callback.expected, rel=1e-3)


@pytest.mark.parametrize("limits", [{"max_epochs": -1}, {"max_epochs": None}], ids=str)
def test_igdm_is_refused_in_a_fit_of_so_many_steps(mlp_teacher, tmp_path, limits):
    """Lightning counts no epochs then and calls their number -1: the term would be subtracted."""
    fit = trainer(tmp_path, max_steps=4, limit_train_batches=2, **limits)
    with pytest.raises(ValueError, match=r"igdm .*max_epochs"):
        fit.fit(build(ARD, mlp_teacher, igdm=1.0), digits())


# Noise


@FIVE
def test_a_teachers_noise_is_heard(batch, mlp_teacher, regime):
    quiet, noisy = (build(regime, mlp_teacher, alpha=0.5, noise=noise) for noise in ([], [SignalDependentNoise(0.5)]))
    noisy.load_state_dict(quiet.state_dict())
    assert not torch.equal(noisy.step(batch, 0)[0], quiet.step(batch, 0)[0])


# Arguments


@pytest.mark.parametrize(
    ("regime", "options", "message"),
    [
        *((regime, {"igdm": -0.5}, "igdm .*must be at least 0, got -0.5") for regime in (AKD, ARD, RSLAD, IAD, AdaAD)),
        (ARD, {"igdm": float("nan")}, "igdm .* got nan"),
        (IAD, {"beta": -0.1}, "beta .*must be at least 0, got .*-0.1"),
        (IAD, {"beta": float("nan")}, "beta .* got .*nan"),
        (IAD, {"warmup": -1}, "warmup must be at least 0, got .*-1"),
        (AKD, {"teacher_sees": "both"}, "teacher_sees must .*both"),
        *((regime, {"attack": pgd(loss=loss)}, "loss: kl") for regime in (RSLAD, AdaAD) for loss in ("ce", "margin")),
        *((regime, {"alpha": value}, f"alpha .* got {value}") for regime in (RSLAD, AdaAD) for value in (-0.1, 1.1)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else name(value).replace(" ", ""),
)
def test_refused_arguments(mlp_teacher, regime, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(regime, mlp_teacher, **options)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("regime", [AKD, ARD, IAD], ids=name)
def test_an_attack_that_wants_distributions_is_refused_in_words_where_it_gets_labels(batch, mlp_teacher, regime):
    with pytest.raises(ValueError, match="against labels: not with loss: kl"):
        build(regime, mlp_teacher, attack=pgd(loss="kl"), alpha=0.5).step(batch, 0)


def test_the_defaults_are_the_papers():
    def default(regime: type[Regime], argument: str) -> Any:
        return inspect.signature(regime.__init__).parameters[argument].default

    assert default(RSLAD, "alpha") == 5 / 6
    assert default(AdaAD, "alpha") == 1.0
    assert (default(IAD, "beta"), default(IAD, "warmup")) == (0.1, 60)
    assert default(AKD, "teacher_sees") == "adversarial"
