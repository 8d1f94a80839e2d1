"""Distillation on clean images: Hinton's, the defensive one, and the reversed one."""

from typing import Any

from torch import Tensor

from datamodules import Batch
from lightning_modules.base import Logs
from lightning_modules.distiller import Distiller
from lightning_modules.losses import check_temperature, soft_cross_entropy


class Distillation(Distiller):
    """``(1 - a) CE(z_S(x), y) + a t^2 KL(p(z_T(x), t) || p(z_S(x), t))``.

    Source: Hinton et al. 2015; 004, eq. 3; 002, eq. 3, which prints ``CE(z_S / t, y)`` where its code has t = 1
    (``ce_temperature: t``). The methods of 004 are this regime with ``noise``.

    Per step: student 1 forward, 1 backward; teacher 1 forward, none at a = 0.
    """

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        teacher = self.taught(batch) if self.alpha > 0 else None
        student = self.network(batch.x)
        return self.mixed(teacher, student, student, batch.y), {}


class DefensiveDistillation(Distiller):
    """``-sum_c p(z_T, T)_c log p(z_S, T_S)_c``: soft labels alone, no factor t^2; the student is used at T = 1.

    Source: Papernot et al. 2016 (000), §IV; the student has its teacher's architecture, the teacher was trained at the
    same T, and T_S = T. With other architectures and T_S = 1 these are the students of the 20 flavours (001): their
    soft labels are always taken at T.

    Per step: student 1 forward, 1 backward; teacher 1 forward.

    Args:
        temperature: T, of the soft labels.
        student_temperature: T_S, that the student is trained at; None stands for T.
    """

    def __init__(self, temperature: float = 20.0, student_temperature: float | None = None, **kwargs: Any) -> None:
        # Labels have no word in its loss, and the terms that these weigh do not occur.
        super().__init__(temperature=temperature, alpha=1.0, ce_temperature=1, kl_reduction="batchmean", **kwargs)
        if student_temperature is not None:
            check_temperature("student_temperature", student_temperature)
            self.trained_at = student_temperature

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        loss = soft_cross_entropy(self.taught(batch), self.network(batch.x), self.temperature, self.trained_at)
        return loss, {}


class ReversedKD(Distiller):
    """``(1 - a) CE(z_S(x), y) + a KL(p(z_T(x), t) || p(z_S(x), t))``, taught by a smaller network than the student.

    Source: Yuan et al. 2020; 003, §4.2, eq. 2, which has no factor t^2. The paper names neither a nor t; 0.6 and 20 are
    those of Yuan et al.'s code, which has the factor and averages the KL over classes. Without the factor the term's
    gradient shrinks by 1/t^2: at t = 20 it hardly moves a network.

    Per step: student 1 forward, 1 backward; teacher 1 forward, none at a = 0.

    Args:
        alpha: a.
        temperature: t.
    """

    def __init__(self, alpha: float = 0.6, temperature: float = 20.0, **kwargs: Any) -> None:
        super().__init__(alpha=alpha, temperature=temperature, **kwargs)

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        teacher = self.taught(batch) if self.alpha > 0 else None
        student = self.network(batch.x)
        return self.mixed(teacher, student, student, batch.y, scale=1.0), {}
