"""Adversarial knowledge distillation."""

from typing import Any, Literal

from torch import Tensor

from lightning_modules.robust_distiller import Answers, RobustDistiller


class AKD(RobustDistiller):
    """``(1 - a) CE(z_S(x'), y) + a t^2 KL(p(z_T(x_T), t) || p(z_S(x'), t))``, x' crafted on the student, x_T = x'.

    The student is trained adversarially, on labels that an adversarially trained teacher mixes its word into.

    Source: Maroto et al. 2022; row 2 of table 5 of paper 003. ``teacher_sees: clean`` has x_T = x.

    Per step: student K + 1 forwards, K + 1 backwards; teacher 1 forward, none at a = 0.

    Args:
        teacher_sees: the images that the teacher judges: ``adversarial`` or ``clean`` ones.
    """

    def __init__(self, teacher_sees: Literal["adversarial", "clean"] = "adversarial", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if teacher_sees not in ("adversarial", "clean"):
            raise ValueError(f"teacher_sees must be adversarial or clean, got {teacher_sees!r}.")
        self.teacher_sees = teacher_sees

    @property
    def hears_of_clean_images(self) -> bool:
        return super().hears_of_clean_images and self.teacher_sees == "clean"

    def outer(self, answers: Answers) -> Tensor:
        teacher = None
        if self.alpha > 0:
            teacher = answers.teacher if self.teacher_sees == "clean" else answers.teacher_adv
        return self.mixed(teacher, answers.student_adv, answers.student_adv, answers.batch.y)
