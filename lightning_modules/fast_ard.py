"""ARD at the price of plain distillation, by free replay."""

from typing import Any, Literal

import torch
from torch import Tensor

from attacks import Threat
from datamodules import Batch
from lightning_modules.base import Logs
from lightning_modules.distiller import Distiller
from lightning_modules.losses import cross_entropy, distillation


class FastARD(Distiller):
    """ARD's loss on ``x + d``, every mini-batch m times in a row; one backward moves the weights and ``d``.

    ``d <- project(d + eps sign(grad_d loss))`` (for l2: eps along the normalised gradient); ``d`` persists from batch
    to batch and from epoch to epoch, as in free adversarial training (Shafahi et al. 2019).

    Source: Goldblum et al. 2020 (002), §5.4 and Algorithm 2. The text lets ``d`` climb the distillation loss by the
    backward that the weights use; the algorithm lets it climb the cross-entropy (``delta_loss: ce``, one more
    backward). The algorithm prints the student on clean images; text and free training mean x + d. The paper does not
    give the step of ``d``; it is the radius, as in free training. Train for epochs / m, with the rate's drops in
    steps. Per step the student does 1 forward and 1 backward (and 1 more forward below a = 1); the teacher 1 forward
    per mini-batch, not per replay. At m > 1 the last, partial mini-batch of an epoch is left out. Under DDP every
    process has a ``d`` of its own; a fit that is resumed begins with rank zero's in all of them.

    Args:
        threat: the ball that ``d`` stays in.
        replays: m, at least 1.
        delta_loss: what ``d`` climbs: the weights' loss (``ard``) or the cross-entropy with the labels (``ce``).
    """

    def __init__(
        self, threat: Threat, replays: int = 4, delta_loss: Literal["ard", "ce"] = "ard", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if replays < 1:
            raise ValueError(f"replays must be at least 1, got {replays}.")
        if self.alpha == 0:
            raise ValueError("At alpha = 0 nothing is distilled, and d would climb no loss: alpha must be above 0.")
        self._threat = threat.within(self.facts.box)
        self.replays = replays
        self.delta_loss = delta_loss
        # Not a buffer: DDP would overwrite it with rank zero's, and each rank perturbs images of its own.
        self.delta = torch.empty(0)
        self._seen = 0  # batches since the loader began; Lightning's batch_idx differs after a resume inside an epoch

    @property
    def threat(self) -> Threat:
        return self._threat

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._seen = 0

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        if not len(self.delta):
            self.delta = torch.zeros_like(batch.x)
        if len(self.delta) < len(batch.x):
            raise ValueError(
                f"This fit began with batches of {len(self.delta)} images and cannot go on with {len(batch.x)}: "
                f"resume with --data.batch_size {len(self.delta)}."
            )
        self.delta = self.delta.to(batch.x.device)  # a checkpoint's is on the CPU
        self._leaf = self.delta[: len(batch.x)].clone().requires_grad_()
        if self._seen % self.replays == 0:
            self._taught = self.teacher(batch.x)  # a mini-batch's replays show it the same images
        self._seen += 1
        student = self.network(self.threat.clamp(batch.x + self._leaf))
        clean = self.network(batch.x) if self.alpha < 1 else None
        loss = distillation(
            self._taught,
            student,
            clean,
            batch.y,
            self.alpha,
            self.temperature,
            self.ce_temperature,
            self.kl_reduction,
        )
        if self.delta_loss == "ce":
            (self._climb,) = torch.autograd.grad(cross_entropy(student, batch.y), self._leaf, retain_graph=True)
        return loss, {}

    @torch.no_grad()
    def on_after_backward(self) -> None:
        # The gradient is only used for its direction, so neither accumulation nor a gradient scaler changes it.
        gradient = self._climb if self.delta_loss == "ce" else self._leaf.grad
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
