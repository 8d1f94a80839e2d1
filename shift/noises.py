"""Noise of four kinds, drawn anew for every value of every image.

Like all corruptions here, these map images (B, C, H, W), float64 in [0, 1], to such images before they are clipped and
written in 8 bits; ``c`` is the severity's constant, and every image has a generator of its own.
"""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator


def gaussian_noise(x: np.ndarray, c: float, rngs: Sequence[Generator]) -> np.ndarray:
    """``x + N(0, c²)``."""
    return x + c * _normal(x, rngs)


def shot_noise(x: np.ndarray, c: float, rngs: Sequence[Generator]) -> np.ndarray:
    """``Poisson(c x) / c``: c photons for white."""
    return np.stack([rng.poisson(c * image) for image, rng in zip(x, rngs, strict=True)]) / c


def impulse_noise(x: np.ndarray, c: float, rngs: Sequence[Generator]) -> np.ndarray:
    """A share c of the values becomes 0 or 1, as likely the one as the other."""
    draw = np.stack([rng.random(image.shape) for image, rng in zip(x, rngs, strict=True)])
    return np.where(draw < c, draw < c / 2, x)


def speckle_noise(x: np.ndarray, c: float, rngs: Sequence[Generator]) -> np.ndarray:
    """``x + x N(0, c²)``."""
    return x + x * c * _normal(x, rngs)


def _normal(x: np.ndarray, rngs: Sequence[Generator]) -> np.ndarray:
    return np.stack([rng.standard_normal(image.shape) for image, rng in zip(x, rngs, strict=True)])
