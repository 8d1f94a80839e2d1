"""Robust soft label adversarial distillation."""

from typing import Any

from torch import Tensor

from attacks import Attack
from lightning_modules.losses import kl_divergence
from lightning_modules.robust_distiller import Answers, RobustDistiller


class RSLAD(RobustDistiller):
    """``a KL(p(z_T(x)) || p(z_S(x'))) + (1 - a) KL(p(z_T(x)) || p(z_S(x)))``, x' maximising the first KL.

    The teacher's soft labels take the place of y everywhere: in the attack, on adversarial and on clean images; t = 1.

    Source: Zi et al. 2021, eq. 7 and 8, a = 5/6. The authors' code averages the KL over classes (``kl_reduction:
    mean``) and multiplies by 10 on CIFAR-100 to make up; it starts at x + 0.001 N(0, 1), ours anywhere in the ball.

    Per step: student K + 2 forwards, K + 2 backwards, one of each less at a = 1; teacher 1 forward.

    Args:
        attack: crafts x'; its loss must be ``kl``.
        alpha: a.
    """

    climbs_kl = True

    def __init__(self, attack: Attack, alpha: float = 5 / 6, **kwargs: Any) -> None:
        super().__init__(attack=attack, alpha=alpha, temperature=1.0, ce_temperature=1, **kwargs)

    @property
    def hears_of_clean_images(self) -> bool:
        return True

    def inner(self, answers: Answers) -> Tensor:
        return self.craft(answers.batch, answers.teacher.float().softmax(1))

    def outer(self, answers: Answers) -> Tensor:
        return self.both(
            lambda: kl_divergence(answers.teacher, answers.student_adv, reduction=self.kl_reduction),
            lambda: kl_divergence(answers.teacher, answers.student, reduction=self.kl_reduction),
        )
