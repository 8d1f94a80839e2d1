"""What each regime's step returns, held against the formulas of the papers in float64, and what it costs."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from regime_helpers import DISTILLERS, FACTS, REGIMES, STEPS, THREAT, build, calls, fickle_wrn, mlp, name, pgd
from torch import Tensor, nn

from attacks import PGD, Draws, Threat
from datamodules import Batch
from lightning_modules import (
    ARD,
    TRADES,
    AdversarialTraining,
    DefensiveDistillation,
    Distillation,
    FastARD,
    FickleTeacher,
    Regime,
    Teacher,
)

T = 3.0
ALPHA = pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])

# The formulas, on logits in float64 and by plain arithmetic.


def log_p(z: Tensor, t: float = 1.0) -> Tensor:
    z = z / t
    z = z - z.amax(1, keepdim=True).detach()
    return z - z.exp().sum(1, keepdim=True).log()


def ce(z: Tensor, y: Tensor, t: float = 1.0) -> Tensor:
    return -sum(log_p(z, t)[i, int(c)] for i, c in enumerate(y)) / len(y)


def kl(target: Tensor, student: Tensor, t: float = 1.0) -> Tensor:
    return (log_p(target, t).exp() * (log_p(target, t) - log_p(student, t))).sum() / len(target)


def kd(teacher: Tensor, student: Tensor, clean: Tensor, y: Tensor, alpha: float, t: float, ce_t: float = 1) -> Tensor:
    return alpha * t * t * kl(teacher, student, t) + (1 - alpha) * ce(clean, y, ce_t)


class Double:
    """A network of the same weights in float64, and the gradients of a loss of its logits."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).double()

    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x.double())

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        parameters = dict(self.network.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, grads, strict=True))


class Divided(nn.Module):
    """``z / t``, written here so as not to test a thing by itself."""

    def __init__(self, network: nn.Module, t: float) -> None:
        super().__init__()
        self.network, self.t = network, t

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) / self.t


def check(regime: Regime, batch: Batch, reference: Callable[[Double], Tensor]) -> None:
    """The step's loss, and its gradients to the weights, are those of the reference."""
    double = Double(regime.network)
    expected = reference(double)
    loss, _ = regime.step(batch, 0)
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    regime.network.zero_grad()
    loss.backward()
    for key, gradient in double.gradients(expected).items():
        found = dict(regime.network.named_parameters())[key].grad
        assert found is not None
        torch.testing.assert_close(found.double(), gradient, rtol=1e-3, atol=1e-5)


def crafted(regime: Regime, batch: Batch, t: float = 1.0, y: Tensor | None = None, **kwargs: Any) -> Tensor:
    attack = PGD(Threat("linf", 0.15, FACTS.box), steps=STEPS, **kwargs)
    draws = regime.draws(batch)
    assert isinstance(draws, Draws)
    return attack(Divided(regime.network, t), batch.x, batch.y if y is None else y, draws)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_teacher(batch, temperature):
    regime = build(Teacher, temperature=temperature)
    check(regime, batch, lambda net: ce(net(batch.x), batch.y, temperature))
    assert regime.trained_at == temperature


@ALPHA
@pytest.mark.parametrize(("option", "ce_t"), [(1, 1.0), ("t", T)])
def test_distillation(batch, mlp_teacher, alpha, option, ce_t):
    regime = build(Distillation, mlp_teacher, alpha=alpha, temperature=T, ce_temperature=option)
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: kd(z_t, net(batch.x), net(batch.x), batch.y, alpha, T, ce_t))


def test_defensive_distillation_has_soft_labels_alone_and_no_factor(batch, mlp_teacher):
    regime = build(DefensiveDistillation, mlp_teacher, temperature=20.0)
    p = log_p(Double(regime.teacher.module)(batch.x), 20.0).exp()
    check(regime, batch, lambda net: -(p * log_p(net(batch.x), 20.0)).sum() / len(batch.y))
    assert regime.trained_at == 20.0


def test_fickle_teacher_is_distillation_from_one_sample(batch, wrn_teacher):
    regime = build(FickleTeacher, wrn_teacher, alpha=0.9, temperature=T)
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
    regime = build(ARD, mlp_teacher, alpha=0.9, temperature=30.0, attack_temperature="t")
    nn.init.normal_(regime.network.fc.weight, std=2)
    x_adv = crafted(regime, batch, t=30.0)
    assert not torch.equal(x_adv, crafted(regime, batch))
    z_t = Double(regime.teacher.module)(batch.x)
    check(regime, batch, lambda net: kd(z_t, net(x_adv), net(batch.x), batch.y, 0.9, 30.0))


@pytest.mark.parametrize("regime", [Distillation, FickleTeacher, ARD, FastARD], ids=name)
def test_the_mean_reduction_divides_the_kl_by_the_classes_too(batch, wrn_teacher, regime):
    losses = {}
    for reduction in ("batchmean", "mean"):
        for alpha in (0.4, 1.0):
            torch.manual_seed(0)
            built = build(regime, wrn_teacher, alpha=alpha, kl_reduction=reduction)
            built.setup("fit")
            torch.manual_seed(0)
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


@pytest.mark.parametrize(
    ("regime", "options", "student", "teacher"),
    [
        (Teacher, {}, 1, 0),
        (Distillation, {"alpha": 1.0}, 1, 1),
        (Distillation, {"alpha": 0.5}, 1, 1),
        (Distillation, {"alpha": 0.0}, 1, 0),
        (DefensiveDistillation, {}, 1, 1),
        (FickleTeacher, {"alpha": 0.5}, 1, 1),
        (FickleTeacher, {"alpha": 0.0}, 1, 0),
        (ARD, {"alpha": 1.0}, STEPS + 1, 1),
        (ARD, {"alpha": 0.5}, STEPS + 2, 1),
        (ARD, {"alpha": 0.0}, 1, 0),
        (FastARD, {"alpha": 1.0}, 1, 1),
        (FastARD, {"alpha": 0.5}, 2, 1),
        (FastARD, {"alpha": 0.5, "delta_loss": "ce"}, 2, 1),
        (AdversarialTraining, {}, STEPS + 1, 0),
        (TRADES, {}, STEPS + 3, 0),
    ],
    ids=name,
)
def test_forwards_per_step(batch, wrn_teacher, regime, options, student, teacher):
    built = build(regime, wrn_teacher, **options)
    built.setup("fit")
    asked: list[Tensor] = []
    if regime in DISTILLERS:
        built.teacher.module.register_forward_hook(lambda module, inputs, output: asked.append(output))
    with calls(built.network) as outputs:
        built.step(batch, 0)
    assert len(outputs) == student
    assert len(asked) == teacher
    assert not any(output.requires_grad for output in asked)
    assert sum(not output.requires_grad for output in outputs) == (regime is TRADES)


def test_every_regime_is_counted():
    assert set(REGIMES) == {
        Teacher,
        Distillation,
        DefensiveDistillation,
        FickleTeacher,
        ARD,
        FastARD,
        AdversarialTraining,
        TRADES,
    }


def test_ard_at_alpha_one_shows_the_student_no_clean_image(batch, mlp_teacher):
    regime = build(ARD, mlp_teacher, alpha=1.0)
    seen: list[Tensor] = []
    regime.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    regime.step(batch, 0)
    assert seen
    assert not any(torch.equal(x, batch.x) for x in seen)


# Draws


@pytest.mark.parametrize("regime", [ARD, AdversarialTraining], ids=name)
def test_an_images_example_does_not_depend_on_its_batch(batch, mlp_teacher, regime):
    built = build(regime, mlp_teacher)
    order = torch.randperm(len(batch.y))
    part = Batch(*(field[order][:5] for field in batch))
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
        (Distillation, {"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        (Distillation, {"temperature": -4.0}, "temperature must be positive, got -4.0"),
        (FastARD, {"replays": 0}, "replays must be at least 1, got 0"),
        (TRADES, {"beta": -1.0}, "beta must be at least 0, got -1.0"),
        (TRADES, {"attack": pgd()}, "loss: kl"),
        (TRADES, {"attack": pgd(loss="kl", random_start=False)}, "random_start: true"),
    ],
    # Not the objects themselves: parallel workers must agree on the names.
    ids=lambda value: "-".join(value) if isinstance(value, dict) else name(value),
)
def test_refused_arguments(mlp_teacher, regime, options, message):
    with pytest.raises(ValueError, match=message):
        build(regime, mlp_teacher, **options)


def test_the_attack_gets_the_datasets_box(mlp_teacher):
    facts = FACTS.to_dict() | {"box": [-1.0, 2.0]}
    assert build(AdversarialTraining, facts=facts).threat.bounds == (-1.0, 2.0)
    assert build(FastARD, mlp_teacher, facts=facts).threat.bounds == (-1.0, 2.0)
    assert THREAT.box is None


@pytest.mark.parametrize("regime", REGIMES, ids=name)
def test_what_chooses_the_best_checkpoint(mlp_teacher, regime):
    built = build(regime, mlp_teacher)
    adversarial = regime in (ARD, FastARD, AdversarialTraining, TRADES)
    assert (built.threat is not None) == adversarial
    assert built.monitor == ("val/robust_acc" if adversarial else "val/acc")


@pytest.mark.parametrize("network", [mlp, fickle_wrn])
def test_forward_is_the_network(batch, network):
    regime = build(Teacher, network=network).eval()
    assert torch.equal(regime(batch.x), regime.network(batch.x))
