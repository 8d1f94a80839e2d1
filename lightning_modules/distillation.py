"""Distillation on clean images: Hinton's, and the defensive one."""

from typing import Any

from torch import Tensor

from datamodules import Batch
from lightning_modules.base import Logs
from lightning_modules.distiller import Distiller
from lightning_modules.losses import distillation, soft_cross_entropy


class Distillation(Distiller):
    """``(1 - a) CE(z_S(x), y) + a t^2 KL(p(z_T(x), t) || p(z_S(x), t))``.

    Source: Hinton et al. 2015; 004, eq. 3; 002, eq. 3, which prints ``CE(z_S / t, y)`` where its code has t = 1
    (``ce_temperature: t``). Student: 1 forward, 1 backward per step; teacher: 1 forward, none at a = 0.
    """

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        teacher = self.teacher(batch.x) if self.alpha > 0 else None
        student = self.network(batch.x)
        loss = distillation(
            teacher, student, student, batch.y, self.alpha, self.temperature, self.ce_temperature, self.kl_reduction
        )
        return loss, {}


class DefensiveDistillation(Distiller):
    """``-sum_c p(z_T, T)_c log p(z_S, T)_c``: soft labels alone, no factor t^2; the student is used at T = 1.

    Source: Papernot et al. 2016 (000), §IV; the student has its teacher's architecture, and the teacher was trained at
    the same T. Student: 1 forward, 1 backward per step; teacher: 1 forward.

    Args:
        temperature: T.
    """

    def __init__(self, temperature: float = 20.0, **kwargs: Any) -> None:
        # Labels have no word in its loss, and the terms that these weigh do not occur.
        super().__init__(temperature=temperature, alpha=1.0, ce_temperature=1, kl_reduction="batchmean", **kwargs)

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        loss = soft_cross_entropy(self.teacher(batch.x), self.network(batch.x), self.temperature, self.temperature)
        return loss, {}


class FickleTeacher(Distillation):
    """Hinton's loss with the teacher's dropout active at every forward: one sample, no averaging.

    Source: 004, §4.2. The teacher was trained with the same dropout; its batch-norm stays in eval mode. Work per step
    as in :class:`Distillation`.
    """

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.teacher.keep_dropout_active()
