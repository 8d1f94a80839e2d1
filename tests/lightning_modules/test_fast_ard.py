"""Free replay, held against the recurrence of its perturbation, step by step."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from regime_helpers import FACTS, assert_identical, build, digits, every_epoch, everything, trainer
from torch import Tensor
from torch.nn import functional as F

from attacks import Threat
from lightning_modules import FastARD, FreeAdversarialTraining, InputNoise
from lightning_modules.replay import Replayed

BATCH = 400  # 1,293 images: three whole mini-batches and a part
WHOLE = 3
EPS = 0.15


class Recurrence(pl.Callback):
    """At every step: ``d <- shorten(d + eps sign(grad_d loss))``, from the weights as they were before the step."""

    def __init__(self) -> None:
        self.index: list[Tensor] = []
        self.deltas: list[Tensor] = []
        self.moved = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Replayed, batch: Any, batch_idx: int) -> None:
        self.index.append(batch.index)
        self.network = copy.deepcopy(pl_module.network)
        self.before = pl_module.delta.clone() if len(pl_module.delta) else torch.zeros_like(batch.x)
        if len(self.index) == 1 and trainer.current_epoch == 0:
            assert not self.before.any()
        if self.deltas:
            assert torch.equal(self.before, self.deltas[-1])  # persists from batch to batch and epoch to epoch

    def on_train_batch_end(self, trainer: Any, pl_module: Replayed, outputs: Any, batch: Any, batch_idx: int) -> None:
        x, y, n = batch.x, batch.y, len(batch.y)
        d = self.before[:n].clone().requires_grad_()
        z = self.network((x + d).clamp(0, 1))
        if isinstance(pl_module, FreeAdversarialTraining) or pl_module.delta_loss == "ce":
            loss = F.cross_entropy(z, y)
        else:
            t = pl_module.temperature
            p = (pl_module.teacher.module(x) / t).softmax(1)
            loss = -(p * (z / t).log_softmax(1)).sum()  # the KL's gradient, and its direction alone counts
        (gradient,) = torch.autograd.grad(loss, d)
        if pl_module.threat.norm == "linf":
            expected = (d.detach() + EPS * gradient.sign()).clamp(-EPS, EPS)
            sure = (gradient.abs() > 1e-4 * gradient.abs().amax()) | (gradient == 0)
        else:
            expected = d.detach() + EPS * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            expected *= (EPS / expected.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
            sure = torch.ones_like(gradient, dtype=torch.bool)
        found = pl_module.delta[:n]
        assert sure.float().mean() > 0.95
        torch.testing.assert_close(found[sure], expected[sure], rtol=1e-4, atol=1e-6)
        assert torch.equal(pl_module.delta[n:], self.before[n:])  # the images of a smaller batch alone move
        order = float("inf") if pl_module.threat.norm == "linf" else 2
        assert torch.linalg.vector_norm(pl_module.delta.flatten(1), order, dim=1).max() <= EPS * (1 + 1e-6)
        self.moved += int((found != self.before[:n]).any())
        self.deltas.append(pl_module.delta.clone())


def fit(regime: Replayed, folder: Any, batch_size: int = BATCH, **kwargs: Any) -> tuple[Any, Recurrence]:
    recurrence = Recurrence()
    callbacks = [recurrence, *kwargs.pop("callbacks", [])]
    run = trainer(folder, callbacks=callbacks, **{"limit_train_batches": 1.0} | kwargs)
    run.fit(regime, digits(batch_size), ckpt_path=kwargs.get("ckpt_path"))
    return run, recurrence


@pytest.mark.parametrize("delta_loss", ["ard", "ce"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("replays", [2, 3])
def test_the_recurrence(mlp_teacher, tmp_path, delta_loss, norm, replays):
    regime = build(FastARD, mlp_teacher, threat=Threat(norm, EPS), replays=replays, delta_loss=delta_loss)
    run, recurrence = fit(regime, tmp_path, max_epochs=2)
    steps = 2 * replays * WHOLE
    assert run.global_step == len(recurrence.index) == recurrence.moved == steps


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.4}, {"alpha": 0.4, "delta_loss": "ce"}, {"ce_temperature": "t", "alpha": 0.4, "temperature": 30.0}],
    ids=str,
)
def test_the_recurrence_below_alpha_one(mlp_teacher, tmp_path, options):
    """The cross-entropy on clean images has no gradient to d."""
    fit(build(FastARD, mlp_teacher, **options), tmp_path)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("replays", [1, 2, 4])
def test_the_recurrence_of_free_adversarial_training(tmp_path, norm, replays):
    """The same with the cross-entropy, and the weights' gradient is that of the images shown."""
    regime = build(FreeAdversarialTraining, threat=Threat(norm, EPS), replays=replays)
    run, recurrence = fit(regime, tmp_path, max_epochs=2)
    batches = WHOLE + (replays == 1)  # a last, partial batch is dropped only where there are replays
    assert run.global_step == len(recurrence.index) == recurrence.moved == 2 * replays * batches
    for start in range(0, len(recurrence.index), replays):
        later = recurrence.index[start : start + replays]
        assert all(torch.equal(recurrence.index[start], other) for other in later)


def test_free_adversarial_training_learns_from_the_images_that_it_shows(batch):
    regime = build(FreeAdversarialTraining)
    regime.delta = torch.empty_like(batch.x).uniform_(-EPS, EPS)
    twin, shown = copy.deepcopy(regime.network), (batch.x + regime.delta).clamp(0, 1)
    loss, _ = regime.step(batch, 0)
    loss.backward()
    expected = F.cross_entropy(twin(shown), batch.y)
    expected.backward()
    assert torch.equal(loss, expected)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(regime.network.parameters(), twin.parameters(), strict=True))


def test_noise_on_the_images_is_drawn_for_every_replay(mlp_teacher, tmp_path):
    """And the teacher still sees the clean images, once."""
    regime = build(FastARD, mlp_teacher, replays=3, noise=[InputNoise(0.1)])
    shown: list[Tensor] = []
    step = regime.step

    def watched(batch: Any, batch_idx: int) -> Any:
        assert batch.x.amin() >= 0  # clamped, where there is an adversary
        assert batch.x.amax() <= 1
        shown.append((batch.x - batch.clean)[(batch.clean > 0.45) & (batch.clean < 0.55)])
        return step(batch, batch_idx)

    regime.step = watched
    regime.setup("fit")
    asked: list[Tensor] = []
    regime.teacher.module.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    trainer(tmp_path, limit_train_batches=1.0).fit(regime, digits(BATCH))
    assert len(shown) == 3 * len(asked) == 3 * WHOLE
    assert all(x.amin() >= 0 and x.amax() <= 1 for x in asked)
    assert all(len(noise) > 500 and 0.09 < noise.std() < 0.11 for noise in shown)
    assert not any(torch.equal(one, other) for one, other in pairwise(shown))


def test_every_mini_batch_is_seen_m_times_in_a_row(mlp_teacher, tmp_path):
    _, recurrence = fit(build(FastARD, mlp_teacher, replays=4), tmp_path, max_epochs=2)
    index = recurrence.index
    assert len(index) == 2 * 4 * WHOLE
    for start in range(0, len(index), 4):
        assert all(torch.equal(index[start], other) for other in index[start : start + 4])
    for epoch in (index[: 4 * WHOLE], index[4 * WHOLE :]):
        assert len(torch.cat(epoch[::4]).unique()) == WHOLE * BATCH  # no image twice
    assert not torch.equal(index[0], index[4 * WHOLE])


def test_the_teacher_is_asked_once_per_mini_batch_and_shown_clean_images(mlp_teacher, tmp_path):
    regime = build(FastARD, mlp_teacher, replays=3)
    regime.setup("fit")  # whose probe is a forward too
    asked: list[Tensor] = []
    regime.teacher.module.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    shown: list[Tensor] = []

    class Shown(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            shown.append(batch.x)

    # Validation in the midst of a mini-batch's replays changes nothing.
    run = trainer(tmp_path, callbacks=[Shown()], limit_train_batches=1.0, max_epochs=2, val_check_interval=4)
    run.fit(regime, digits(BATCH))
    assert len(asked) == 2 * WHOLE
    assert all(torch.equal(x, y) for x, y in zip(asked, shown[::3], strict=True))


def test_an_epoch_cut_short_within_a_mini_batchs_replays(mlp_teacher, tmp_path):
    """The next epoch's first mini-batch must not be taught what the last one's was."""
    fit(build(FastARD, mlp_teacher, replays=3), tmp_path, max_epochs=3, limit_train_batches=4)


def test_one_replay(mlp_teacher, tmp_path):
    run, recurrence = fit(build(FastARD, mlp_teacher, replays=1), tmp_path, max_epochs=2)
    assert recurrence.moved == run.global_step
    assert len(recurrence.deltas[-1]) == BATCH  # a last, partial batch does not shorten it
    assert [len(index) for index in recurrence.index[:WHOLE]] == [BATCH] * WHOLE


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 1e-3},
        {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1},
        {"max_steps": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("delta_loss", ["ard", "ce"])
def test_the_recurrence_under_the_trainers_options(mlp_teacher, tmp_path, options, delta_loss):
    run, recurrence = fit(build(FastARD, mlp_teacher, delta_loss=delta_loss), tmp_path, max_epochs=2, **options)
    batches = min(2 * 2 * WHOLE, options.get("max_steps", 100))
    assert len(recurrence.index) == recurrence.moved == batches
    # An epoch of six batches ends with a step, whether or not four are together.
    assert run.global_step == {4: 4}.get(
        options.get("accumulate_grad_batches"), batches // options.get("accumulate_grad_batches", 1)
    )


def test_clipping_bounds_the_weights_step(mlp_teacher, tmp_path):
    regime = build(FastARD, mlp_teacher)
    before = everything(regime.network)
    fit(regime, tmp_path, limit_train_batches=1, gradient_clip_val=1e-3)
    after = everything(regime.network)
    moved = torch.stack([(after[key] - before[key]).norm() for key in before]).norm()
    assert 0.99 * 0.05e-3 < moved < 1.01 * 0.05e-3  # rate 0.05


def test_the_perturbation_goes_through_a_checkpoint(mlp_teacher, tmp_path):
    regime = build(FastARD, mlp_teacher)
    fit(regime, tmp_path, callbacks=[every_epoch(tmp_path)])
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert checkpoint["delta"].shape == (BATCH, *FACTS.shape)
    assert torch.equal(checkpoint["delta"], regime.delta)
    resumed = build(FastARD, mlp_teacher)
    began: list[Tensor] = []

    class Began(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            began.append(pl_module.delta.clone())

    trainer(tmp_path, callbacks=[Began()], max_epochs=2).fit(
        resumed, digits(BATCH), ckpt_path=tmp_path / "epoch=0.ckpt"
    )
    assert torch.equal(began[0], checkpoint["delta"])
    assert len(began) == 3


def test_the_perturbation_is_no_buffer(mlp_teacher):
    regime = build(FastARD, mlp_teacher)
    assert not any("delta" in key for key, _ in [*regime.named_buffers(), *regime.named_parameters()])


def test_it_climbs(mlp_teacher, tmp_path):
    """With weights that stand still, the loss at x + d rises from replay to replay."""
    losses: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    regime = build(FastARD, mlp_teacher, replays=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    before = everything(regime.network)
    trainer(tmp_path, callbacks=[Watch()]).fit(regime, digits(BATCH))
    assert losses[0] < losses[1] <= losses[2]
    assert_identical(everything(regime.network), before)


def test_more_images_than_are_there_are_refused(mlp_teacher, tmp_path):
    with pytest.raises(ValueError, match="at least one full batch of 2000, there are 1293"):
        trainer(tmp_path).fit(build(FastARD, mlp_teacher), digits(2000))


@pytest.mark.parametrize("delta_loss", ["ard", "ce"])
def test_alpha_zero_is_refused_in_words(mlp_teacher, delta_loss):
    """At a = 0 the loss does not hold x + d at all."""
    with pytest.raises(ValueError, match="alpha must be above 0"):
        build(FastARD, mlp_teacher, alpha=0.0, delta_loss=delta_loss)


def test_a_resumed_fit_with_larger_batches_is_refused_in_words(mlp_teacher, tmp_path):
    trainer(tmp_path, callbacks=[every_epoch(tmp_path)]).fit(build(FastARD, mlp_teacher), digits(64))
    resumed = build(FastARD, mlp_teacher)
    with pytest.raises(ValueError, match=r"--data\.batch_size 64"):
        trainer(tmp_path, max_epochs=2).fit(resumed, digits(128), ckpt_path=tmp_path / "epoch=0.ckpt")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_that_overflowed_does_not_stay_in_the_perturbation(mlp_teacher, batch, norm):
    """As a gradient scaler's first steps in fp16 do: the optimiser skips them, the perturbation must not keep them."""
    regime = build(FastARD, mlp_teacher, threat=Threat(norm, EPS))
    loss, _ = regime.step(batch, 0)
    loss.backward()
    regime._leaf.grad[0, 0, 0, 0] = torch.nan
    regime._leaf.grad[1, 0, 0, 0] = torch.inf
    regime.on_after_backward()
    assert regime.delta.isfinite().all()
