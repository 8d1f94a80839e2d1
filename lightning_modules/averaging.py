"""An exponential moving average of the weights, as an option of every regime."""

import warnings
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn

# The callback takes no part in a test, and its checkpoint's state in none but the fit that goes on.
warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks .*'Averaging'")

FACTORIES = ("optimizer", "scheduler", "_build")  # of a regime; the average needs none


class Averaging(WeightAveraging):
    """Lightning's averaging, ``w_a <- d w_a + (1 - d) w`` after every optimiser step, from the first step's weights on.

    Validation, and so the choice of the best checkpoint, sees the average; a checkpoint's ``state_dict`` is the average
    too, and what a fit goes on from stands beside it. Three things are put right. Lightning's would keep the average on
    the CPU where the training is on a GPU, because it looks where the model is before the model is moved. At a test by
    the trainer that has fitted, it would put the weights of a step in the place of the checkpoint's average. And its
    copy of a model from the command line would be one of the whole run, which its optimiser's factory refers to.

    Args:
        decay: d, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        check_decay(decay)
        # By lerp, which leaves what is equal as it is, such as the normalisation's constants; d a + (1 - d) a may not.
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        factories = {name: getattr(pl_module, name, None) for name in FACTORIES}
        try:
            for name in factories:
                setattr(pl_module, name, None)
            super().setup(trainer, pl_module, stage)
        finally:
            for name, factory in factories.items():
                setattr(pl_module, name, factory)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def check_decay(decay: float | None) -> None:
    """Raises ValueError for a decay that averages nothing, or everything away."""
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"ema is the decay of an average of the weights, in [0, 1), e.g. 0.999, got {decay}.")
