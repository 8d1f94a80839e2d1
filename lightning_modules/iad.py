"""Introspective adversarial distillation."""

from typing import Any

from torch import Tensor

from lightning_modules.ard import ARD
from lightning_modules.losses import introspection
from lightning_modules.robust_distiller import Answers


class IAD(ARD):
    """ARD's loss + ``mean (1 - p_T(y given x')^b) KL(p(z_S(x)) || p(z_S(x')))``, once the warm-up is over.

    A teacher that an example deceives is unreliable there, and the student then listens to itself on the clean image.

    Source: Zhu et al. 2022, IAD-I, b = 0.1. The authors' code multiplies the new term by a too, which is 1 on
    CIFAR-10, and has no factor on ARD's term either; t = 1 in the new term alone.

    Per step: student K + 2 forwards, K + 2 backwards; teacher 2 forwards; in the warm-up as ARD.

    Args:
        beta: b, at least 0; 0 trusts the teacher wholly, which is ARD.
        warmup: number of epochs that are ARD's.
    """

    def __init__(self, beta: float = 0.1, warmup: int = 60, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not beta >= 0 or warmup < 0:
            raise ValueError(f"beta and warmup must be at least 0, got beta={beta} and warmup={warmup}.")
        self.beta = beta
        self.warmup = warmup

    def outer(self, answers: Answers) -> Tensor:
        loss = super().outer(answers)
        if self.current_epoch < self.warmup or self.beta == 0:
            return loss
        trust = answers.teacher_adv.float().softmax(1).gather(1, answers.batch.y[:, None]).squeeze(1) ** self.beta
        return loss + introspection(answers.student, answers.student_adv, trust)
