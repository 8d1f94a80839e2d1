"""Adversarially robust distillation."""

from typing import Any

from torch import Tensor

from lightning_modules.distiller import Tempering
from lightning_modules.robust_distiller import Answers, RobustDistiller


class ARD(RobustDistiller):
    """``a t^2 KL(p(z_T(x), t) || p(z_S(x'), t)) + (1 - a) CE(z_S(x), y)``, x' crafted on the student.

    Source: Goldblum et al. 2020 (002), eq. 1 and Algorithm 1. The equation tempers the student in the cross-entropy
    and in the attack, the algorithm and the released code do not (``ce_temperature``, ``attack_temperature``). The
    code also averages the KL over classes (``kl_reduction: mean``) and crafts with batch-norm in train mode (the
    attack's ``batchnorm: train``).

    Per step: student K + 1 forwards, K + 1 backwards, and 1 of each more below a = 1; teacher 1 forward.

    Args:
        attack_temperature: 1 as in the algorithm, or t as in the equation: the student's temperature in the attack.
    """

    def __init__(self, attack_temperature: Tempering = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attack_temperature = self.tempering(attack_temperature)

    def inner(self, answers: Answers) -> Tensor:
        return self.craft(answers.batch, temperature=self.attack_temperature)

    def outer(self, answers: Answers) -> Tensor:
        teacher = answers.teacher if self.alpha > 0 else None
        student = answers.student_adv if self.alpha > 0 else None
        clean = answers.student if self.alpha < 1 else None
        return self.mixed(teacher, student, clean, answers.batch.y)
