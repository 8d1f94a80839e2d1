"""What an attack climbs: functions of logits ``(B, C)`` and a target that give one value per image, shape (B,).

A target is a class index (B,) or a distribution over the classes (B, C). Every objective is larger where the model is
further from the target.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["ce", "margin", "kl"]


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


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """``KL(target || softmax(z))`` for a distribution ``target`` (TRADES, Zhang et al. 2019, eq. 3)."""
    if target.dim() != 2:
        raise ValueError(f"The loss kl moves away from distributions (B, classes), got labels {tuple(target.shape)}.")
    return F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "kl": divergence,
}


def check_loss(name: Loss) -> Loss:
    """Raises ValueError for the name of no objective."""
    if name not in OBJECTIVES:
        raise ValueError(f"An attack's loss must be one of {', '.join(OBJECTIVES)}, got {name!r}.")
    return name
