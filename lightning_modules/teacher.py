"""Training on labels, at a temperature."""

from typing import Any

from torch import Tensor

from datamodules import Batch
from lightning_modules.base import Logs, Regime
from lightning_modules.losses import check_temperature, cross_entropy


class Teacher(Regime):
    """Training on labels at a temperature: ``CE(z(x) / T, y)``; T = 1 is plain training.

    Source: Papernot et al. 2016 (000), §IV. The network is used at T = 1 afterwards: its logits have grown by about T,
    which saturates the softmax. Student: 1 forward, 1 backward per step.

    Args:
        temperature: T.
    """

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_temperature("temperature", temperature)
        self.trained_at = temperature

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        return cross_entropy(self.network(batch.x), batch.y, self.trained_at), {}
