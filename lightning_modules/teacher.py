"""Training on labels: at a temperature, or smoothed."""

from typing import Any

from torch import Tensor

from datamodules import Batch
from lightning_modules.base import Logs, Regime
from lightning_modules.losses import check_smoothing, check_temperature, cross_entropy


class Teacher(Regime):
    """``CE(z(x) / T, q)``: training on labels at a temperature; q is the label itself, and T = 1 is plain training.

    Source: Papernot et al. 2016 (000), §IV. The network is used at T = 1 afterwards: its logits have grown by about T,
    which saturates the softmax. With smoothing s, q is ``1 - s`` on the label and ``s / (C - 1)`` elsewhere (label
    smoothing, 003, §4.2); ``torch.nn.CrossEntropyLoss(label_smoothing=s)`` gives the label ``s / C`` more.

    Per step: student 1 forward, 1 backward.

    Args:
        temperature: T.
        smoothing: s, in [0, 1 - 1 / C].
    """

    def __init__(self, temperature: float = 1.0, smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_temperature("temperature", temperature)
        check_smoothing(smoothing, self.facts.classes)
        self.trained_at = temperature
        self.smoothing = smoothing

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        return cross_entropy(self.network(batch.x), batch.y, self.trained_at, self.smoothing), {}
