"""What the benchmark of epochs puts into a fit: data of any number, and a bare loop beside Lightning's."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.arms import FACTS, take_step
from benchmarks.common import cpu_seconds
from benchmarks.pipeline import Noise


class Drawn(Noise):
    """Noise of as many images as asked for."""

    def __init__(self, count: int, batch_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.randint(256, (count, *FACTS.shape), dtype=torch.uint8, generator=generator), batch_size)


class Beside(pl.Callback):
    """Lets a bare loop run behind every epoch, over the same batches.

    Attributes:
        taken: seconds of Lightning's epochs, and of the bare ones.
    """

    def __init__(self) -> None:
        self.taken: tuple[list[float], list[float]] = ([], [])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = _now(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        middle = _now(pl_module.device)
        data, key = trainer.datamodule, (0, trainer.current_epoch)  # type: ignore[attr-defined]
        precision = "bf16" if trainer.precision == "bf16-mixed" else "32"
        for fetched in data.train_dataloader():
            batch = data.batch("train", fetched.index.to(pl_module.device, non_blocking=True), key)
            take_step(pl_module, trainer.optimizers[0], batch, precision)
        for taken, seconds in zip(self.taken, (middle - self.began, _now(pl_module.device) - middle), strict=True):
            taken.append(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return cpu_seconds()
    torch.cuda.synchronize()
    return time.perf_counter()
