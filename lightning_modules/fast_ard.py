"""ARD at the price of plain distillation, by free replay."""

from typing import Any, Literal

from torch import Tensor

from datamodules import Batch
from lightning_modules.base import Logs
from lightning_modules.distiller import Distiller
from lightning_modules.losses import cross_entropy
from lightning_modules.replay import Replayed


class FastARD(Replayed, Distiller):
    """ARD's loss on ``x + d``, every mini-batch m times in a row; one backward moves the weights and ``d``.

    Source: Goldblum et al. 2020 (002), §5.4 and Algorithm 2. The text lets ``d`` climb the distillation loss by the
    backward that the weights use; the algorithm lets it climb the cross-entropy (``delta_loss: ce``, one more
    backward). The algorithm prints the student on clean images; text and free training mean x + d. The paper does not
    give the step of ``d``; it is the radius, as in free training. Train for epochs / m, with the rate's drops in
    steps.

    Per step: student 1 forward, 1 backward, and 1 of each more below a = 1; teacher 1 forward per mini-batch.

    Args:
        delta_loss: what ``d`` climbs: the weights' loss (``ard``) or the cross-entropy with the labels (``ce``).
    """

    def __init__(self, delta_loss: Literal["ard", "ce"] = "ard", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if delta_loss not in ("ard", "ce"):
            raise ValueError(f"delta_loss must be ard or ce, got {delta_loss!r}.")
        if self.alpha == 0:
            raise ValueError("At alpha = 0 nothing is distilled, and d would climb no loss: alpha must be above 0.")
        self.delta_loss = delta_loss

    @property
    def hears_labels(self) -> bool:
        return self.alpha < 1 or self.delta_loss == "ce"

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        if self.first_replay():
            self._taught = self.taught(batch)  # a mini-batch's replays show it the same images
        student = self.network(self.perturbed(batch))
        clean = self.network(batch.x) if self.alpha < 1 else None
        loss = self.mixed(self._taught, student, clean, batch.y)
        if self.delta_loss == "ce":
            self.climb(cross_entropy(student, batch.y))
        return loss, {}
