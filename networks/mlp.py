"""Fully connected networks."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from networks.base import Facts, Network


class MLP(Network):
    """Fully connected classifier of flattened images ``(B, C, H, W)``, or of points ``(B, 2, 1, 1)``.

    Widths 1200-1200 and 400 are the teacher and the student of distillation on MNIST (Hinton et al. 2015 and its
    successors; 2.395M and 0.318M parameters at 28×28, 10 classes), 32 and 16 the full and the reduced network of the
    toy ring in the 20 flavours of defensive distillation (Zou 2023).

    Args:
        facts: the dataset's facts.
        widths: number of units of each hidden layer; none makes a linear classifier.
        dropout: share of units dropped after each hidden layer while training.
        normalize: normalise the input first.
    """

    def __init__(
        self, facts: Facts, widths: Sequence[int] = (1200, 1200), dropout: float = 0.0, normalize: bool = True
    ) -> None:
        super().__init__(facts, normalize)
        sizes = [prod(facts.shape), *widths]
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(
            OrderedDict(
                (f"hidden{i}", nn.Sequential(nn.Linear(sizes[i - 1], sizes[i]), nn.ReLU(), nn.Dropout(dropout)))
                for i in range(1, len(sizes))
            )
        )
        self.fc = nn.Linear(sizes[-1], facts.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, C, H, W)``."""
        return self.fc(self.hidden(self.flatten(self.normalise(x))))

    def stages(self) -> dict[str, nn.Module]:
        return dict(self.hidden.named_children())
