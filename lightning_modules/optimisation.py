"""Optimiser and schedule, and the learning rate of a batch that is not the recipe's."""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.cli import LRSchedulerCallable, ReduceLROnPlateau
from pytorch_lightning.utilities import rank_zero_info
from torch.optim import Optimizer

Rule = Literal["linear", "sqrt"]
POWERS = {"linear": 1.0, "sqrt": 0.5}


@dataclass(frozen=True)
class RateScaling:
    """Scales a recipe's learning rate to the n images of an optimiser step: batch x devices x accumulated batches.

    ``linear``: rate x n / reference (Goyal et al. 2017, §2.1). ``sqrt``: rate x sqrt(n / reference) (Krizhevsky 2014).
    Neither warms up: for that there are schedules.

    Attributes:
        rule: ``linear`` or ``sqrt``.
        reference: images of the optimiser step that the rate was chosen for, at least 1.
    """

    rule: Rule
    reference: int

    def __post_init__(self) -> None:
        if self.rule not in POWERS:
            raise ValueError(f"rate_scaling.rule must be linear or sqrt, got {self.rule!r}.")
        if self.reference < 1:
            raise ValueError(
                f"rate_scaling.reference is the number of images that the rate was chosen for, at least 1, got "
                f"{self.reference}."
            )

    def factor(self, trainer: pl.Trainer) -> float:
        """What a fit of this trainer multiplies the rate by.

        Raises:
            ValueError: where nobody knows how large a batch is.
        """
        return (prod(images_per_step(trainer)) / self.reference) ** POWERS[self.rule]

    def scale(self, optimizer: Optimizer, trainer: pl.Trainer) -> None:
        """Multiplies the rates of a new optimiser, and says so."""
        factor = self.factor(trainer)
        recipe = optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups:
            group["lr"] *= factor
        batch, devices, accumulated = images_per_step(trainer)
        rank_zero_info(
            f"Learning rate {recipe * factor:g}: the recipe's {recipe:g} times {factor:g}, by the {self.rule} rule for "
            f"{batch * devices * accumulated} images a step (batch {batch}, devices {devices}, accumulated "
            f"{accumulated}) over the recipe's {self.reference}."
        )


def images_per_step(trainer: pl.Trainer) -> tuple[int, int, int]:
    """Images of a device's batch, devices, and batches that are accumulated: their product is an optimiser step's."""
    batch = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if batch is None:
        raise ValueError(
            "rate_scaling counts the images of a step, and the trainer was given no datamodules.Images, which say how "
            "many a batch has: train on one, or scale the rate yourself."
        )
    return batch, trainer.world_size, trainer.accumulate_grad_batches


def schedule(
    optimizer: Optimizer, scheduler: LRSchedulerCallable, interval: str, scaling: RateScaling | None
) -> dict[str, Any]:
    """An optimiser and its schedule as Lightning is told of them.

    Args:
        optimizer: the optimiser, its rates scaled already.
        scheduler: builds the schedule from it.
        interval: ``epoch`` or ``step``.
        scaling: what scaled its rates, if anything.

    Raises:
        ValueError: for a schedule that begins from a rate of its own, so that the scaled one would have no effect.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    built = scheduler(optimizer)
    begins = [group.get("initial_lr", lr) for group, lr in zip(optimizer.param_groups, rates, strict=True)]
    if scaling is not None and begins != rates:
        raise ValueError(
            f"{type(built).__name__} sets the rate whatever the optimiser's is, so rate_scaling changes nothing: scale "
            "the schedule's own rates and leave rate_scaling out, or take another schedule."
        )
    told: dict[str, Any] = {"scheduler": built, "interval": interval}
    if isinstance(built, ReduceLROnPlateau):
        told["monitor"] = built.monitor
    return {"optimizer": optimizer, "lr_scheduler": told}
