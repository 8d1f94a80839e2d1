"""What ARD and its successors share: examples crafted on the student, answers computed when a loss asks for them."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks import Attack
from datamodules import Batch
from lightning_modules.base import Logs
from lightning_modules.distiller import Distiller
from lightning_modules.losses import kl_divergence


class Answers:
    """Logits (B, C) of student and teacher in one step, each computed when first asked for, and once.

    So a method says which ones its equation needs, and no step pays for others.
    """

    def __init__(self, regime: "RobustDistiller", batch: Batch) -> None:
        self._regime = regime
        self.batch = batch

    @cached_property
    def x_adv(self) -> Tensor:
        """x', (B, C, H, W): what the inner objective makes of the images."""
        return self._regime.inner(self)

    @cached_property
    def student(self) -> Tensor:
        """``z_S(x)``."""
        return self._regime.network(self.batch.x)

    @cached_property
    def student_adv(self) -> Tensor:
        """``z_S(x')``."""
        return self._regime.network(self.x_adv)

    @cached_property
    def teacher(self) -> Tensor:
        """``z_T(x)``."""
        return self._regime.taught(self.batch)

    @cached_property
    def teacher_adv(self) -> Tensor:
        """``z_T(x')``."""
        return self._regime.taught(self.batch, self.x_adv)


class RobustDistiller(Distiller):
    """A distiller whose student learns from adversarial examples: an inner objective and an outer loss.

    With ``igdm`` above 0 the student also matches how its teacher's answer changes along the perturbation d = x' - x, a
    stand-in for the input's gradient: ``w KL(p(z_T(x + d) - z_T(x - d)) || p(z_S(x + d) - z_S(x - d)))`` with ``w =
    igdm (epoch + 1) / epochs`` (IGDM, Lee et al. 2024, added to any of these methods). As in the authors' code, t = 1
    whatever the regime's, the KL is summed over classes, and x - d is not clamped to the box. It costs student and
    teacher one forward each at x - d, and the teacher one at x' where the method itself asks for none.

    Args:
        attack: crafts x' on the student as it stands.
        igdm: weight of that term at the end of training, at least 0.

    Attributes:
        climbs_kl: whether the attack moves away from a distribution, by a loss ``kl``, rather than from the labels.
    """

    climbs_kl: ClassVar[bool] = False

    def __init__(self, attack: Attack, igdm: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not igdm >= 0:
            raise ValueError(f"igdm is a weight and must be at least 0, got {igdm}.")
        self.attack = self.bind(attack, self.climbs_kl)
        self.igdm = igdm
        self.epochs = 1

    @property
    def hears_labels(self) -> bool:
        return not self.climbs_kl

    def inner(self, answers: Answers) -> Tensor:
        """x': by default what maximises the student's cross-entropy."""
        return self.craft(answers.batch)

    def both(self, adversarial: Callable[[], Tensor], clean: Callable[[], Tensor]) -> Tensor:
        """``a adversarial + (1 - a) clean``, neither computed where it has no weight."""
        terms = [self.alpha * adversarial()] if self.alpha > 0 else []
        terms += [(1 - self.alpha) * clean()] if self.alpha < 1 else []
        return torch.stack(terms).sum()

    @abstractmethod
    def outer(self, answers: Answers) -> Tensor:
        """The loss of the weights."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.igdm > 0:
            epochs = self.trainer.max_epochs
            if epochs is None or epochs < 1:
                raise ValueError("igdm grows from epoch to epoch: say how many there are with trainer.max_epochs.")
            self.epochs = epochs

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        answers = Answers(self, batch)
        loss = self.outer(answers)
        if self.igdm == 0:
            return loss, {}
        mirrored = 2 * batch.x - answers.x_adv
        teacher = answers.teacher_adv - self.taught(batch, mirrored)
        student = answers.student_adv - self.network(mirrored)
        matching = kl_divergence(teacher, student)
        growth = (self.current_epoch + 1) / self.epochs
        return loss + self.igdm * growth * matching, {"igdm": matching}
