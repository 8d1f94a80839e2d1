"""Adversarial training by one step or by free replay, and the watch over its sudden collapse."""

import copy
import inspect
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from formulas import ce, check, shown
from regime_helpers import FACTS, STEPS, THREAT, build, digits, every_epoch, name, pgd, trainer, wrn
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from attacks import PGD, Threat
from datamodules import Batch
from lightning_modules import FGSMRS, NFGSM, AdversarialTraining, FreeAdversarialTraining, Regime, Teacher

EPS = float(THREAT.eps)
BOX = THREAT.within(FACTS.box)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def gradient(regime: Regime, x: Tensor, y: Tensor) -> Tensor:
    """Of the cross-entropy with the labels, to the images; the network in eval mode."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(copy.deepcopy(regime.network).eval()(x), y, reduction="sum"), x)[0]


def first_shown(regime: Regime, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where the search starts, and what it finds."""
    with shown(regime.network) as seen:
        regime.step(batch, 0)
    start, x_adv = seen
    return start, x_adv


# FGSM from a random start


@NORMS
@pytest.mark.parametrize("step", [1.25, 0.5])
def test_fgsm_rs_is_one_step_of_pgd_from_the_same_start(batch, norm, step):
    """Wong et al. 2020, Algorithm 3, whose step is 1.25 radii."""
    threat = Threat(norm, EPS)
    regime = build(FGSMRS, threat=threat, **{} if step == 1.25 else {"step": step})
    attack = PGD(threat.within(FACTS.box), steps=1, step_size=step * EPS)
    expected = attack(regime.network, batch.x, batch.y, regime.draws(batch))
    assert torch.equal(regime.craft(batch), expected)
    assert BOX.holds(expected, batch.x).all() or norm == "l2"
    check(regime, batch, lambda net: ce(net(expected), batch.y))


def test_fgsm_rs_step_by_step(batch):
    """A uniform start in the ball, a step along the sign, back into the ball and the box."""
    regime = build(FGSMRS)
    start, x_adv = first_shown(regime, batch)
    assert BOX.holds(start, batch.x).all()
    moved = start + 1.25 * EPS * gradient(regime, start, batch.y).sign()
    expected = torch.minimum(torch.maximum(moved, batch.x - EPS), batch.x + EPS).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)
    assert torch.equal(regime.craft(batch), x_adv)


# N-FGSM


@pytest.mark.parametrize(("reach", "step"), [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (2.0, 0.5)])
def test_n_fgsm(batch, reach, step):
    """de Jorge et al. 2022, Algorithm 1: noise in a ball of k radii, then a step that nothing cuts but the box."""
    regime = build(NFGSM, **{} if (reach, step) == (2.0, 1.0) else {"reach": reach, "step": step})
    start, x_adv = first_shown(regime, batch)
    expected = (start + step * EPS * gradient(regime, start, batch.y).sign()).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)
    assert torch.equal(regime.craft(batch), x_adv)
    assert (start - batch.x).abs().max() <= reach * EPS * (1 + 1e-5) + 1e-6
    assert (x_adv - batch.x).abs().max() <= (reach + step) * EPS * (1 + 1e-5) + 1e-6
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    check(regime, batch, lambda net: ce(net(expected), batch.y))


def test_n_fgsm_starts_where_the_draws_say(batch):
    regime = build(NFGSM)
    wide = Threat("linf", 2 * EPS, FACTS.box)
    starts = [wide.start(batch.x, draws) for draws in (regime.draws(batch), regime.draws(batch).stream(0))]
    start, _ = first_shown(regime, batch)
    assert any(torch.equal(start, other) for other in starts)


def test_n_fgsm_leaves_the_ball(batch):
    """Most images' examples lie outside it: that is what keeps robustness from collapsing."""
    x_adv = build(NFGSM).craft(batch)
    assert not BOX.holds(x_adv, batch.x).any()


def test_n_fgsms_noise_is_uniform_in_twice_the_radius():
    """Where the box does not cut it: on grey images."""
    grey = Batch(torch.full((64, *FACTS.shape), 0.5), torch.zeros(64, dtype=torch.long), torch.arange(64))
    start, _ = first_shown(build(NFGSM), grey)
    unit = (start - 0.5).flatten() / (4 * EPS) + 0.5
    assert stats.kstest(unit.double().numpy(), "uniform").pvalue > 1e-3
    rows = (start - 0.5).flatten(1)
    assert len({tuple(row.tolist()) for row in rows}) == 64


def test_n_fgsm_in_l2_stays_within_three_radii(batch):
    regime = build(NFGSM, threat=Threat("l2", 1.0))
    x_adv = regime.craft(batch)
    assert ((x_adv - batch.x).flatten(1).norm(dim=1) <= 3 * (1 + 1e-5)).all()
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()


@pytest.mark.parametrize("regime", [FGSMRS, NFGSM], ids=name)
def test_the_threat_is_the_one_that_was_given(batch, regime):
    """Not that of the noise: validation attacks by it, and the checkpoint is chosen by it."""
    built = build(regime)
    assert built.threat == BOX
    assert built.monitor == "val/robust_acc"


@pytest.mark.parametrize("regime", [FGSMRS, NFGSM], ids=name)
def test_the_network_is_seen_in_eval_mode_while_crafting(batch, regime):
    """And batch-norm's averages move by the training forward alone."""
    built = build(regime, network=wrn)
    modes: list[bool] = []
    built.network.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    before = built.network.block1.layer[0].bn1.num_batches_tracked.clone()
    built.step(batch, 0)
    assert modes == [False, True]
    assert built.network.block1.layer[0].bn1.num_batches_tracked == before + 1


# Free adversarial training


def test_free_adversarial_training(batch):
    regime = build(FreeAdversarialTraining)
    delta = torch.empty_like(batch.x).uniform_(-EPS, EPS)
    regime.delta = delta.clone()
    x_adv = (batch.x + delta).clamp(0, 1)
    check(regime, batch, lambda net: ce(net(x_adv), batch.y))


@NORMS
def test_frees_perturbation(tmp_path, norm):
    """``d <- project(d + eps steepest(grad_d CE(z(x + d), y)))`` by the weights before the step; d persists."""
    threat = Threat(norm, EPS)
    deltas: list[Tensor] = []

    class Recurrence(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            before = pl_module.delta.clone() if len(pl_module.delta) else torch.zeros_like(batch.x)
            assert torch.equal(before, deltas[-1]) if deltas else not before.any()
            d = before.requires_grad_()
            network = copy.deepcopy(pl_module.network)
            # The sum's direction is the mean's, and its size is no nearer to the smallest numbers.
            value = F.cross_entropy(network((batch.x + d).clamp(0, 1)), batch.y, reduction="sum")
            (slope,) = torch.autograd.grad(value, d)
            if norm == "linf":
                self.expected = (d.detach() + EPS * slope.sign()).clamp(-EPS, EPS)
            else:
                moved = d.detach() + EPS * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                self.expected = moved * (EPS / moved.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
            # no slope where the box cut x + d
            self.sure = (slope.abs() > 1e-4 * slope.abs().amax()) | (slope == 0)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            found = pl_module.delta
            assert self.sure.float().mean() > 0.95
            torch.testing.assert_close(found[self.sure], self.expected[self.sure], rtol=1e-4, atol=1e-6)
            deltas.append(found.clone())

    regime = build(FreeAdversarialTraining, threat=threat, replays=3)
    fit = trainer(tmp_path, callbacks=[Recurrence()], max_epochs=2, limit_train_batches=1.0)
    fit.fit(regime, digits(400))
    assert len(deltas) == fit.global_step == 2 * 3 * 3
    assert regime.replays == 3


def test_free_has_four_replays_unless_given():
    assert inspect.signature(FreeAdversarialTraining.__init__).parameters["replays"].default == 4


# Arguments


@pytest.mark.parametrize(
    ("regime", "options", "message"),
    [
        (FGSMRS, {"step": 0.0}, "step .*0.0"),
        (FGSMRS, {"step": -1.0}, "step .*-1.0"),
        (FGSMRS, {"step": float("nan")}, "step .*nan"),
        (NFGSM, {"step": 0.0}, "step .*0.0"),
        (NFGSM, {"reach": -0.5}, "reach=-0.5"),
        (NFGSM, {"reach": float("nan")}, "reach=nan"),
        (FreeAdversarialTraining, {"replays": 0}, "replays must be at least 1, got 0"),
        (FreeAdversarialTraining, {"replays": -2}, "replays must be at least 1, got -2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else name(value).replace(" ", ""),
)
def test_refused_arguments(regime, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(regime, **options)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_the_defaults_are_the_papers():
    def default(regime: type, argument: str) -> Any:
        return inspect.signature(regime.__init__).parameters[argument].default

    assert default(FGSMRS, "step") == 1.25
    assert (default(NFGSM, "reach"), default(NFGSM, "step")) == (2.0, 1.0)


# The watch

FLOOR = 1.5 / FACTS.classes  # half again of what chance gives


def warned(regime: Regime, *accuracies: float) -> list[bool]:
    """At which of these robust accuracies, one per epoch, the watch speaks."""
    heard = []
    for accuracy in accuracies:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            regime.watch.robust(accuracy, regime.current_epoch)
        messages = [str(entry.message) for entry in caught]
        assert all("atastrophic overfitting" in message for message in messages)
        heard.append(bool(messages))
    return heard


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.4, 0.19), [False, True]),
        ((0.4, 0.0), [False, True]),
        ((0.4, 0.2), [False, False]),  # half is not below half
        ((0.4, 0.21), [False, False]),
        ((0.2, 0.5, 0.3), [False, False, False]),
        ((0.2, 0.5, 0.24), [False, False, True]),  # held against the best, not against the epoch before
        ((0.5, 0.4, 0.3, 0.26, 0.24), [False, False, False, False, True]),
        ((0.1, 0.0), [False, False]),  # what is at chance has nothing to lose
        ((FLOOR, 0.0), [False, False]),
        ((FLOOR + 0.001, 0.0), [False, True]),
        ((0.0, 0.0), [False, False]),
        ((0.0, 0.4), [False, False]),
    ],
    ids=str,
)
def test_the_watch(accuracies, expected):
    assert warned(build(AdversarialTraining), *accuracies) == expected


def test_the_watch_speaks_once_for_every_collapse():
    """Half of the best has to be back before it speaks again; the best itself stays."""
    heard = warned(build(AdversarialTraining), 0.4, 0.1, 0.1, 0.15, 0.2, 0.3, 0.1)
    assert heard == [False, True, False, False, False, False, True]


def test_the_watch_names_what_it_saw():
    regime = build(FGSMRS)
    regime.watch.robust(0.45, regime.current_epoch)
    with pytest.warns(UserWarning, match=r"epoch 0.*fell to 1.2%.*best was 45.0%"):
        regime.watch.robust(0.012, regime.current_epoch)


def test_the_watchs_best_goes_through_a_checkpoint(tmp_path):
    """A resumed fit that collapses is held against what it was before."""
    first = build(AdversarialTraining)
    trainer(tmp_path, callbacks=[every_epoch(tmp_path)]).fit(first, digits())
    first.watch.robust(0.93, first.current_epoch)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    first.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "better.ckpt")

    resumed = build(AdversarialTraining)
    with pytest.warns(UserWarning, match="best was 93.0%"):
        trainer(tmp_path, max_epochs=2).fit(resumed, digits(), ckpt_path=tmp_path / "better.ckpt")
    assert warned(resumed, 0.5, 0.4) == [False, True]
    assert warned(build(AdversarialTraining), 0.4) == [False]


class Falls(pl.Callback):
    """Robust accuracies in place of the measured ones."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.val_robust_accuracy.compute = lambda: torch.tensor(self.values[trainer.current_epoch])


@pytest.mark.parametrize("regime", [AdversarialTraining, FGSMRS, NFGSM, FreeAdversarialTraining], ids=name)
def test_the_watch_looks_after_every_epochs_validation(regime, tmp_path):
    with pytest.warns(UserWarning, match=r"atastrophic overfitting: in epoch 1 .*fell to 10.0%.*best was 60.0%"):
        trainer(tmp_path, max_epochs=2, callbacks=[Falls(0.6, 0.1)]).fit(build(regime), digits())


def test_the_watch_is_silent_without_an_adversary(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_epochs=2, callbacks=[Falls(0.6, 0.1)]).fit(build(Teacher), digits())
    assert not any("overfitting" in str(entry.message) for entry in caught)


def test_one_step_is_what_pgd_of_one_step_costs(batch):
    """K = 1: as many passes as adversarial training by one step, a fraction of K's."""
    with shown((regime := build(AdversarialTraining, attack=pgd(steps=1))).network) as one:
        regime.step(batch, 0)
    for other in (FGSMRS, NFGSM):
        with shown((regime := build(other)).network) as seen:
            regime.step(batch, 0)
        assert len(seen) == len(one) == 2 < STEPS + 1
