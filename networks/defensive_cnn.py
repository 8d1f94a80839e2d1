"""The convolutional networks of the papers on defensive distillation."""

from typing import Literal

from torch import Tensor, nn

from networks.base import Facts, Network

# Channels of the convolutions and units of the dense layers.
FORMS = {"mnist": ((32, 64), 200), "cifar": ((64, 128), 256)}


class DefensiveCNN(Network):
    """The CNN of defensive distillation (Papernot et al. 2016, table I) and, reduced, of its 20 flavours (Zou 2023).

    Full: two 3×3 convolutions, pool, two more of twice the channels, pool, two dense layers, logits. Reduced: every
    other layer at half the width. The convolutions keep the size of the image: only so does the CIFAR-10 form have
    the published 2.43M parameters and 98M multiply-adds, and its reduced form 0.545M and 6.1M; without padding the
    full one would have 1.15M.

    Args:
        facts: the dataset's facts; images of any size from 4×4.
        form: widths, ``mnist`` (32, 64 channels, 200 units) or ``cifar`` (64, 128 channels, 256 units).
        reduced: every other layer at half the width.
        dropout: share of units dropped before each dense layer but the last while training.
        normalize: normalise the input first.

    Raises:
        ValueError: the images are smaller than 4×4 pixels.
    """

    def __init__(
        self,
        facts: Facts,
        form: Literal["mnist", "cifar"] = "cifar",
        reduced: bool = False,
        dropout: float = 0.5,
        normalize: bool = True,
    ) -> None:
        super().__init__(facts, normalize)
        if facts.size < 4:
            raise ValueError(
                f"Images of {facts.size}×{facts.size} pixels vanish in the two poolings of a DefensiveCNN: "
                "the smallest that work are 4×4."
            )
        (narrow, wide), units = FORMS[form]
        repeats = 2
        if reduced:
            narrow, wide, units, repeats = narrow // 2, wide // 2, units // 2, 1

        self.stage1 = _convolutions(facts.channels, narrow, repeats)
        self.stage2 = _convolutions(narrow, wide, repeats)
        dense: list[nn.Module] = [nn.Flatten()]
        width = wide * (facts.size // 4) ** 2
        for _ in range(repeats):
            dense += [nn.Dropout(dropout), nn.Linear(width, units), nn.ReLU()]
            width = units
        self.dense = nn.Sequential(*dense)
        self.fc = nn.Linear(width, facts.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, C, H, W)``."""
        x = self.stage2(self.stage1(self.normalise(x)))
        return self.fc(self.dense(x))

    def stages(self) -> dict[str, nn.Module]:
        return {"stage1": self.stage1, "stage2": self.stage2}


def _convolutions(inputs: int, outputs: int, repeats: int) -> nn.Sequential:
    """3×3 convolutions with ReLU, then a pool that halves the image."""
    layers: list[nn.Module] = []
    for _ in range(repeats):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.MaxPool2d(2))
