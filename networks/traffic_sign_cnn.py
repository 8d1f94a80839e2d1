"""The convolutional networks that the 20 flavours of defensive distillation use on traffic signs."""

from torch import Tensor, nn

from networks.base import Facts, Network

SHRUNK = 64  # by how much the poolings of either form reduce height and width


class TrafficSignCNN(Network):
    """The CNN of the 20 flavours (Zou et al. 2023, 001) on the Chinese Traffic Sign Recognition Dataset.

    Full: six 3×3 convolutions of 64 channels, two dense layers of 128 units, logits. Reduced: every other layer at half
    the width, that is three convolutions of 32 channels, each followed by a pool of 4, and one dense layer of 64 units.
    The paper says of the full form's poolings only that they are aggressive; a pool of 2 after each convolution is our
    reading, by which both forms bring its images of 256×256 to 4×4. 341,626 and 55,994 parameters for its 58 classes.

    Args:
        facts: the dataset's facts; images of any size from 64×64.
        reduced: every other layer at half the width.
        dropout: share of units dropped before each dense layer but the last while training.
        normalize: normalise the input first.

    Raises:
        ValueError: the images are smaller than 64×64 pixels.
    """

    def __init__(self, facts: Facts, reduced: bool = False, dropout: float = 0.5, normalize: bool = True) -> None:
        super().__init__(facts, normalize)
        if facts.size < SHRUNK:
            raise ValueError(
                f"Images of {facts.size}×{facts.size} pixels vanish in the poolings of a TrafficSignCNN: "
                f"the smallest that work are {SHRUNK}×{SHRUNK}."
            )
        count, channels, pool, units, repeats = (3, 32, 4, 64, 1) if reduced else (6, 64, 2, 128, 2)
        inputs = [facts.channels, *[channels] * (count - 1)]
        self.convolutions = nn.Sequential()
        for number, width in enumerate(inputs, 1):
            layers = nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(pool)
            self.convolutions.add_module(f"stage{number}", nn.Sequential(*layers))
        dense: list[nn.Module] = [nn.Flatten()]
        width = channels * (facts.size // SHRUNK) ** 2
        for _ in range(repeats):
            dense += [nn.Dropout(dropout), nn.Linear(width, units), nn.ReLU()]
            width = units
        self.dense = nn.Sequential(*dense)
        self.fc = nn.Linear(width, facts.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, C, H, W)``."""
        return self.fc(self.dense(self.convolutions(self.normalise(x))))

    def stages(self) -> dict[str, nn.Module]:
        return dict(self.convolutions.named_children())
