"""The toy ring of *Trustworthy Distillation?* (Zou et al. 2023): two blobs inside a ring, in the plane."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Images
from networks.base import Facts


def ring_points(seed: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Draws the 1,200 points.

    300 from N((-1, -1.5), 0.6), 300 from N((1, 1.1), (0.8, 0.7)), 600 on a circle of radius 4: x evenly spaced,
    y with noise of deviation 0.4, half of them above and half below.

    Args:
        seed: one or more non-negative integers; the same seed, the same points.

    Returns:
        points: float32 (1200, 2).
        labels: int64 (1200,), 0 and 1 for the blobs, 2 for the ring.
    """
    generator = np.random.default_rng(seed)
    blobs = [generator.normal(mean, std, (300, 2)) for mean, std in (((-1, -1.5), 0.6), ((1, 1.1), (0.8, 0.7)))]
    x = np.linspace(-4, 4, 300)
    arc = np.sqrt(16 - x**2)
    ring = [np.stack([x, half + generator.normal(0, 0.4, 300)], 1) for half in (arc, -arc)]
    points = torch.from_numpy(np.concatenate([*blobs, *ring])).float()
    return points, torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([300, 300, 600]))


class ToyRing(Images):
    """The toy ring as images of two channels and one pixel: the channels are x and y, in the box [-6, 6].

    The test set is a second draw of as many points.

    Args:
        seed: seed of both draws, not negative.
        kwargs: see :class:`Images`; ``augment`` must stay off.
    """

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = seed

    @property
    def facts(self) -> Facts:
        # Mean and deviation are those of the recipe, not of a draw.
        return Facts(
            classes=3,
            channels=2,
            size=1,
            mean=(0.0, -0.1),
            std=(1.85, 2.55),
            box=(-6.0, 6.0),
            names=("lower left", "upper right", "ring"),
        )

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        points, labels = ring_points((self.seed, 0 if train else 1))
        # The box is five deviations away from the ring: this moves a point in one draw of many thousands, if any.
        return points.clamp(*self.facts.box).view(-1, 2, 1, 1), labels
