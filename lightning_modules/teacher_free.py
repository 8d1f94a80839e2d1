"""Teacher-free distillation: a network taught by itself, or by a teacher that is written down."""

from typing import Any, Literal

from torch import Tensor

from attacks import Attack
from datamodules import Batch
from lightning_modules.base import Logs, Regime
from lightning_modules.distiller import Distiller
from lightning_modules.losses import check_temperature, check_weight, cross_entropy, divergence_from, virtual_teacher

Compat = Literal["yuan2020"]


class TfKDReg(Regime):
    """``(1 - a) CE(z(x), y) + a KL(p^d_t || p(z(x), t))``, ``p^d`` a virtual teacher: d on y, the rest spread evenly.

    With an attack the network sees x' instead: AT Tf-KD reg (003, §4.4.2, eq. 7; there PGD-7).

    Source: Yuan et al. 2020; 003, §4.3.2, eq. 4. The code of the former softens the virtual teacher's
    *probabilities* (``softmax(p^d / t)``, all but uniform), leaves the student untempered, averages the KL over classes
    too and multiplies it by a constant: ``compat: yuan2020``. Paper 003 names neither a nor t; 0.1, 20, 0.99 and the
    constant 100 are those of that code for ResNet-18; in the equation, without constant and t^2, they hardly move a
    network.

    Per step: student 1 forward, 1 backward, and K of each more with an attack of K steps.

    Args:
        alpha: a, in [0, 1].
        temperature: t.
        confidence: d, in [0.9, 1].
        attack: crafts x' by maximising the cross-entropy; None trains on clean images.
        compat: None for the equation, ``yuan2020`` for the authors' code.
        multiplier: the constant of that code; None takes that of its ResNet-18. It needs ``compat``.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        temperature: float = 20.0,
        confidence: float = 0.99,
        attack: Attack | None = None,
        compat: Compat | None = None,
        multiplier: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_weight("alpha", alpha)
        check_temperature("temperature", temperature)
        if not 0.9 <= confidence <= 1:
            raise ValueError(f"confidence, the virtual teacher's d, must lie in [0.9, 1], got {confidence}.")
        self.alpha = alpha
        self.temperature = temperature
        self.trained_at = temperature if compat is None else 1.0
        self.confidence = confidence
        self.compat = compat
        self.multiplier = check_compat(compat, multiplier, 100.0)
        if attack is not None:
            self.attack = self.bind(attack)

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        logits = self.network(batch.x if self.threat is None else self.craft(batch))
        classes = logits.shape[1]
        if self.compat is None:
            target = virtual_teacher(batch.y, classes, self.confidence, self.temperature)
            taught = divergence_from(target, logits, self.temperature)
        else:
            target = (virtual_teacher(batch.y, classes, self.confidence, 1.0) / self.temperature).softmax(1)
            taught = self.multiplier * divergence_from(target, logits) / classes
        return (1 - self.alpha) * cross_entropy(logits, batch.y) + self.alpha * taught, {}


class TfKDSelf(Distiller):
    """``(1 - a) CE(z(x), y) + a KL(p(z_pre(x), t) || p(z(x), t))``, ``z_pre`` the same architecture trained alone.

    With an attack the student sees x' and its teacher x: AT Tf-KD self (003, §4.4.1, eq. 6; there PGD-7), whose
    teacher is adversarially trained itself.

    Source: Yuan et al. 2020; 003, §4.3.1, eq. 3. The code of the former has a factor t^2 and a constant, and averages
    the KL over classes too: ``compat: yuan2020``. Paper 003 names neither a nor t; 0.95, 6 and the constant 50 are
    those of that code for ResNet-18.

    Per step: student 1 forward, 1 backward, and K of each more with an attack of K steps; teacher 1 forward.

    Args:
        alpha: a.
        temperature: t.
        attack: crafts x' by maximising the student's cross-entropy; None trains on clean images.
        compat: None for the equation, ``yuan2020`` for the authors' code.
        multiplier: the constant of that code; None takes that of its ResNet-18. It needs ``compat``.
    """

    def __init__(
        self,
        alpha: float = 0.95,
        temperature: float = 6.0,
        attack: Attack | None = None,
        compat: Compat | None = None,
        multiplier: float | None = None,
        **kwargs: Any,
    ) -> None:
        reduction: Any = "batchmean" if compat is None else "mean"
        super().__init__(alpha=alpha, temperature=temperature, ce_temperature=1, kl_reduction=reduction, **kwargs)
        constant = check_compat(compat, multiplier, 50.0)
        self.scale = constant if compat is None else constant * temperature**2
        if attack is not None:
            self.attack = self.bind(attack)

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        student = self.network(batch.x if self.threat is None else self.craft(batch))
        teacher = self.taught(batch) if self.alpha > 0 else None
        return self.mixed(teacher, student, student, batch.y, self.scale), {}


def check_compat(compat: Compat | None, multiplier: float | None, default: float) -> float:
    """The constant before the KL: 1 in the equations, by default the authors' for ResNet-18 with ``yuan2020``."""
    if compat not in (None, "yuan2020"):
        raise ValueError(f"compat must be yuan2020 or null, got {compat!r}.")
    if compat is None and multiplier is not None:
        raise ValueError(f"The equation has no constant: multiplier={multiplier} needs compat: yuan2020.")
    if multiplier is not None and not multiplier > 0:
        raise ValueError(f"multiplier must be positive, got {multiplier}.")
    return 1.0 if compat is None else default if multiplier is None else multiplier
