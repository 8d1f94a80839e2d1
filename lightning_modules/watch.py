"""Watches a training for losses that are not finite and for robustness that is suddenly gone."""

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

COLLAPSED = 0.5  # a robust accuracy below this share of its best is no fluctuation


class Watch:
    """What a training has been through.

    Args:
        classes: of the dataset.

    Attributes:
        best: the highest accuracy under PGD-10 on the held-out images so far.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.best = 0.0
        self._collapsed = False
        self._finite = torch.ones((), dtype=torch.bool)

    def loss(self, loss: Tensor) -> None:
        """Keeps whether a loss is finite, without looking at it: on a GPU that would stop its queue."""
        self._finite = self._finite.to(loss.device) & loss.detach().isfinite()

    def refuse_nan(self, step: int, epoch: int, rate: float) -> None:
        """Looks; FloatingPointError where a loss was not finite."""
        if not self._finite:
            raise FloatingPointError(
                f"The loss became nan or inf by step {step} (epoch {epoch}) at a learning rate of {rate:g}: try a "
                "smaller rate, gradient clipping or precision 32. Checkpoints are from before."
            )

    def robust(self, accuracy: float, epoch: int) -> None:
        """Warns of catastrophic overfitting: robustness that is suddenly gone (Wong et al. 2020, §5.4)."""
        best, self.best = self.best, max(self.best, accuracy)
        # What is hardly above chance has nothing to lose.
        collapsed, before = accuracy < COLLAPSED * best and best > 1.5 / self.classes, self._collapsed
        self._collapsed = collapsed
        if collapsed and not before:
            rank_zero_warn(
                f"Catastrophic overfitting: in epoch {epoch} the accuracy under PGD-10 on the held-out images fell to "
                f"{accuracy:.1%}, its best was {best:.1%}. The best checkpoint is from before; try a smaller step, "
                "more noise (NFGSM) or more steps."
            )
