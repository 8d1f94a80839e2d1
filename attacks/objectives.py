"""What an attack climbs: functions of logits ``(B, C)`` and a label that give one value per image, shape (B,).

Every objective is larger where the model is further from the label, or nearer to the class that it is led to.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["ce", "margin", "dlr", "kl"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log softmax(z)_y`` (Goodfellow et al. 2015; Madry et al. 2018)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{i != y} z_i - z_y`` (Carlini & Wagner 2017, f_6 without its floor): positive where the attack succeeds.

    Unlike cross-entropy it does not saturate: its gradient cannot underflow where the softmax does.
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """``-(z_y - max_{i != y} z_i) / (z_1st - z_3rd)`` (Croce & Hein 2020, eq. 6): the margin, whatever the scale.

    With two classes there is no third: the margin itself is climbed, and a warning says so.
    """
    if logits.shape[1] < 3:
        warnings.warn("DLR needs at least 3 classes, the model has 2: the margin is climbed instead.", stacklevel=1)
        return margin(logits, y)
    highest = logits.topk(3, dim=1).values
    return margin(logits, y) / (highest[:, 0] - highest[:, 2] + 1e-12)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """``KL(target || softmax(z))`` for a distribution ``target`` (TRADES, Zhang et al. 2019, eq. 3)."""
    if target.dim() != 2:
        raise ValueError(f"The loss kl moves away from distributions (B, classes), got labels {tuple(target.shape)}.")
    return F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)


def towards(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``z_t - z_y``: positive where the model prefers the class t to the label."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def cross_entropy_towards(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``log softmax(z)_t`` (Kurakin et al. 2017)."""
    return -F.cross_entropy(logits, target, reduction="none")


def dlr_towards(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2)`` (Croce & Hein 2020, eq. 7).

    With fewer than four classes the difference ``z_t - z_y`` itself is climbed, and a warning says so.
    """
    if logits.shape[1] < 4:
        warnings.warn(
            f"Targeted DLR needs at least 4 classes, the model has {logits.shape[1]}: "
            "the difference of logits is climbed instead.",
            stacklevel=1,
        )
        return towards(logits, y, target)
    highest = logits.topk(4, dim=1).values
    return towards(logits, y, target) / (highest[:, 0] - 0.5 * (highest[:, 2] + highest[:, 3]) + 1e-12)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "kl": divergence,
}
TARGETED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy_towards,
    "margin": towards,
    "dlr": dlr_towards,
}


def check_loss(name: Loss, targets: int = 0) -> Loss:
    """Raises ValueError for the name of no objective, or of one that leads to no class where there are targets."""
    known = TARGETED if targets else OBJECTIVES
    if name not in known:
        raise ValueError(
            f"{'A targeted' if targets else 'An'} attack's loss must be one of {', '.join(known)}, got {name!r}."
        )
    return name


@dataclass(frozen=True)
class Goal:
    """What an attack climbs for every image of a batch.

    Attributes:
        loss: name of the objective.
        y: the labels to move away from, (B,), or distributions (B, C) for ``kl``.
        target: the classes to move to, (B,), or None.
    """

    loss: Loss
    y: Tensor
    target: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The objective of every image, (B,)."""
        if self.target is not None:
            return TARGETED[self.loss](logits, self.y, self.target)
        return OBJECTIVES[self.loss](logits, self.y)

    def __getitem__(self, kept: Tensor) -> "Goal":
        """The same for a part of the batch, chosen by a mask or by positions."""
        return Goal(self.loss, self.y[kept], None if self.target is None else self.target[kept])

    def broken(self, logits: Tensor) -> Tensor:
        """Which images are classified otherwise than they are labelled: bool (B,)."""
        return logits.argmax(1) != (self.y if self.y.dim() == 1 else self.y.argmax(1))


def likely_others(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` most likely classes other than the label, most likely first: int64 (B, count).

    Where the model has fewer, all of them, and a warning says so.
    """
    others = logits.shape[1] - 1
    if count > others:
        warnings.warn(f"{count} target classes were asked for, the model has {others} others.", stacklevel=1)
    return logits.scatter(1, y[:, None], -torch.inf).topk(min(count, others), dim=1).indices
