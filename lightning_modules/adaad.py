"""Adaptive adversarial distillation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks import PGD, crafting
from attacks.objectives import Goal, divergence
from lightning_modules.losses import kl_divergence
from lightning_modules.robust_distiller import Answers, RobustDistiller


class AdaAD(RobustDistiller):
    """``a KL(p(z_T(x')) || p(z_S(x'))) + (1 - a) KL(p(z_T(x)) || p(z_S(x)))``, x' maximising the first KL; t = 1.

    The search looks where student and teacher disagree most, so the teacher's answer moves with x' and is
    differentiated too; the labels have no word.

    Source: Huang et al. 2023, eq. 4 to 6, a = 1. The authors' code starts at x + 0.001 N(0, 1), ours anywhere in the
    ball. The search hears the teacher without noise, the loss with it.

    Per step: student K + 1 forwards, K + 1 backwards, and 1 of each more below a = 1; teacher K + 1 forwards, K
    backwards, and 1 forward more below a = 1.

    Args:
        attack: how x' is searched; its loss must be ``kl``.
        alpha: a.
    """

    climbs_kl = True
    attack: PGD

    def __init__(self, attack: PGD, alpha: float = 1.0, **kwargs: Any) -> None:
        if not isinstance(attack, PGD) or attack.targets:
            raise ValueError("AdaAD searches by attacks.PGD, without targets: give it that, with loss: kl.")
        super().__init__(attack=attack, alpha=alpha, temperature=1.0, ce_temperature=1, **kwargs)

    @property
    def hears_of_clean_images(self) -> bool:
        return self.alpha < 1

    def inner(self, answers: Answers) -> Tensor:
        x, y = answers.batch.x, answers.batch.y
        student, teacher = self.searched(x), self.teacher.answering(x)
        with crafting(student, self.attack.batchnorm), crafting(teacher):
            goal = Disagreement("kl", y)
            return self.attack.maximise(Pair(student, teacher), x, goal, self.draws(answers.batch)).detach()

    def outer(self, answers: Answers) -> Tensor:
        return self.both(
            lambda: kl_divergence(answers.teacher_adv, answers.student_adv, reduction=self.kl_reduction),
            lambda: kl_divergence(answers.teacher, answers.student, reduction=self.kl_reduction),
        )


class Pair(nn.Module):
    """Two networks side by side: (B, C, H, W) to the logits of both, (B, 2 C)."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.student(x), self.teacher(x)], 1)


@dataclass(frozen=True)
class Disagreement(Goal):
    """``KL(p(z_T) || p(z_S))`` of every image, of a pair's logits."""

    def __call__(self, logits: Tensor) -> Tensor:
        student, teacher = logits.chunk(2, 1)
        return divergence(student, teacher.softmax(1))

    def broken(self, logits: Tensor) -> Tensor:
        student, teacher = logits.chunk(2, 1)
        return student.argmax(1) != teacher.argmax(1)

    def __getitem__(self, kept: Tensor) -> "Disagreement":
        return Disagreement(self.loss, self.y[kept])
