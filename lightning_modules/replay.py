"""Free replay: adversarial training at the price of plain training."""

from typing import Any

import torch
from torch import Tensor

from attacks import Threat
from datamodules import Batch
from lightning_modules.base import Logs, Regime
from lightning_modules.losses import cross_entropy


class Replayed(Regime):
    """A regime on ``x + d``, every mini-batch m times in a row; one backward moves the weights and ``d``.

    ``d <- project(d + eps sign(grad_d loss))`` (for l2: eps along the normalised gradient); ``d`` persists from batch
    to batch and from epoch to epoch (Shafahi et al. 2019, Algorithm 1). At m > 1 the last, partial mini-batch of an
    epoch is left out. Under DDP every process has a ``d`` of its own; a fit that is resumed begins with rank zero's in
    all of them.

    Args:
        threat: the ball that ``d`` stays in.
        replays: m, at least 1.
    """

    def __init__(self, threat: Threat, replays: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if replays < 1:
            raise ValueError(f"replays must be at least 1, got {replays}.")
        self._threat = threat.within(self.facts.box)
        self.replays = replays
        # Not a buffer: DDP would overwrite it with rank zero's, and each rank perturbs images of its own.
        self.delta = torch.empty(0)
        self._climb: Tensor | None = None
        self._seen = 0  # batches since the loader began; Lightning's batch_idx differs after a resume inside an epoch

    @property
    def threat(self) -> Threat:
        return self._threat

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._seen = 0

    def perturbed(self, batch: Batch) -> Tensor:
        """``x + d`` inside the box; the backward of a loss of it moves ``d``."""
        if not len(self.delta):
            self.delta = torch.zeros_like(batch.x)
        if len(self.delta) < len(batch.x):
            raise ValueError(
                f"This fit began with batches of {len(self.delta)} images and cannot go on with {len(batch.x)}: "
                f"resume with --data.batch_size {len(self.delta)}."
            )
        self.delta = self.delta.to(batch.x.device)  # a checkpoint's is on the CPU
        self._leaf = self.delta[: len(batch.x)].clone().requires_grad_()
        return self.threat.clamp(batch.x + self._leaf)

    def first_replay(self) -> bool:
        """Whether this step shows its mini-batch for the first time; asked once per step."""
        self._seen += 1
        return (self._seen - 1) % self.replays == 0

    def climb(self, loss: Tensor) -> None:
        """Lets ``d`` climb another loss than the weights', at the price of one more backward."""
        (self._climb,) = torch.autograd.grad(loss, self._leaf, retain_graph=True)

    @torch.no_grad()
    def on_after_backward(self) -> None:
        # The gradient is only used for its direction, so neither accumulation nor a gradient scaler changes it.
        gradient = self._leaf.grad if self._climb is None else self._climb
        assert gradient is not None
        # One that overflowed in fp16 leaves d where it is; the scaler skips the weights' step too.
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        moved = self._leaf + float(self.threat.eps) * self.threat.steepest(gradient)
        self.delta[: len(moved)] = self.threat.shorten(moved)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["delta"] = self.delta

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.delta = checkpoint["delta"]


class FreeAdversarialTraining(Replayed):
    """``CE(z(x + d), y)``, every mini-batch m times in a row; the weights' backward moves ``d`` too.

    Source: Shafahi et al. 2019, Algorithm 1 (Free AT of paper 002, table 9). Train for epochs / m, with the rate's
    drops in steps. The authors' code normalises by mean and deviation outside the network; ours inside.

    Per step: student 1 forward, 1 backward.
    """

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        return cross_entropy(self.network(self.perturbed(batch)), batch.y), {}
