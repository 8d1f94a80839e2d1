"""What a regime's checkpoint says of its fit, and which fits may go on from it."""

from math import isclose
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging

from lightning_modules.optimisation import RateScaling


def check_resumed(trainer: pl.Trainer, checkpoint: dict[str, Any], scaling: RateScaling | None) -> None:
    """Raises ValueError for a fit that would not go on with what the checkpoint's began with."""
    averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if "averaging_state" in checkpoint and not averages:
        raise ValueError(
            "This fit averages its weights, and the checkpoint's are the average: go on with the same --ema, or "
            "start a new fit."
        )
    # The rate goes on as the checkpoint has it, so it is not scaled again, nor for steps of another size.
    began = checkpoint.get("rate_factor", 1.0)
    now = 1.0 if scaling is None else scaling.factor(trainer)
    if not isclose(began, now):
        raise ValueError(
            f"This fit began with a learning rate of {began:g} times its recipe's, and rate_scaling has {now:g} times "
            "for the images of a step now: go on with as many (batch x devices x accumulated), or start a new fit."
        )


def plain(hparams: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that are made of numbers, strings and the like.

    A notebook may have passed functions; a checkpoint that is safe to load cannot hold them.
    """
    return {key: value for key, value in hparams.items() if _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)
