"""What every network shares: the facts that it is built from, and normalisation as its first layer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Facts:
    """What a network must know of its dataset.

    Attributes:
        classes: number of classes, at least 2.
        channels: number of channels of an image.
        size: height and width of an image, in pixels (1 for points in the plane, whose coordinates are channels).
        mean: per-channel mean, in the units of the box.
        std: per-channel standard deviation, in the units of the box.
        box: lowest and highest value that an input can have.
        names: names of the classes in the order of the labels; empty where they have none.
    """

    classes: int
    channels: int
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    box: tuple[float, float] = (0.0, 1.0)
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"A classifier needs at least 2 classes, the data has {self.classes}.")
        if self.size < 1:
            raise ValueError(f"size is that of an image in pixels, at least 1, got {self.size}.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, the images have {self.channels} channels.")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel, got {list(self.std)}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        return (self.channels, self.size, self.size)

    def require(self, other: "Facts", whose: str) -> None:
        """Raises ValueError, with both numbers, where what was made for ``other`` data does not fit these."""
        if (other.classes, other.shape) != (self.classes, self.shape):
            raise ValueError(
                f"{whose} was trained on {other.classes} classes of shape {other.shape}, "
                f"the data has {self.classes} of shape {self.shape}."
            )

    @classmethod
    def of(cls, value: "Facts | dict[str, Any]") -> "Facts":
        """Facts, or the dictionary that a checkpoint holds without trusting any class."""
        return cls(**value) if isinstance(value, dict) else value

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain lists and numbers, which a checkpoint can hold without trusting any class."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class Normalise(nn.Module):
    """Maps images of the box to zero mean and unit deviation per channel: ``(x - mean) / std``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Constants, not state: a published state dict has no such entries.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def renormalise(network: nn.Module, facts: Facts) -> None:
    """Lets a network normalise by the mean and deviation of these facts."""
    for module in network.modules():
        if isinstance(module, Normalise):
            for buffer, values in ((module.mean, facts.mean), (module.std, facts.std)):
                buffer.copy_(torch.tensor(values).view(-1, 1, 1))


class Network(nn.Module, ABC):
    """A classifier that maps images of the dataset's box ``(B, C, H, W)`` to logits ``(B, classes)``.

    Normalisation is its first layer, so an attack's radius means pixels everywhere.

    Args:
        facts: the dataset's facts.
        normalize: subtract mean and divide by deviation first; False for weights that were trained on raw pixels.
    """

    def __init__(self, facts: Facts, normalize: bool = True) -> None:
        super().__init__()
        self.facts = facts
        self.normalise: nn.Module = Normalise(facts.mean, facts.std) if normalize else nn.Identity()

    @abstractmethod
    def stages(self) -> dict[str, nn.Module]:
        """The network's stages, in the order in which an image passes them; the last one's output feeds the head.

        Grad-CAM looks at the last convolutional stage, self-distillation adds a classifier after each.
        """
