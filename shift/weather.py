"""Fog and snow; see :mod:`shift.noises` for what they are given."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from shift.blurs import streaked, zoomed

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def fog(x: np.ndarray, c: tuple[float, float], rngs: Sequence[Generator]) -> np.ndarray:
    """Adds a cloud, and scales the image so that its lightest value stays.

    Args:
        x: the images.
        c: the cloud's weight and how fast its detail fades.
        rngs: the images' generators.
    """
    weight, decay = c
    height, width = x.shape[2:]
    size = 1 << (max(height, width) - 1).bit_length()
    clouds = np.stack([plasma(size, decay, rng)[:height, :width] for rng in rngs])
    lightest = x.max((1, 2, 3), keepdims=True)
    return (x + weight * clouds[:, None]) * lightest / (lightest + weight)


def plasma(size: int, decay: float, rng: Generator) -> np.ndarray:
    """A plasma fractal on a torus, by diamonds and squares (Fournier, Fussell & Carpenter 1982), in [0, 1].

    Args:
        size: height and width, a power of two.
        decay: by what the amplitude is divided as the grid is halved.
        rng: what is drawn.

    Returns:
        Heights, (size, size), whose least is 0 and whose greatest is 1.
    """
    heights = np.zeros((size, size))
    step, amplitude = size, 100.0

    def wibbled(total: np.ndarray) -> np.ndarray:
        return total / 4 + amplitude * rng.uniform(-amplitude, amplitude, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        right = corners + np.roll(corners, -1, 0)
        middles = heights[half::step, half::step] = wibbled(right + np.roll(right, -1, 1))
        around = middles + np.roll(middles, 1, 0)
        heights[::step, half::step] = wibbled(around + corners + np.roll(corners, -1, 1))
        around = middles + np.roll(middles, 1, 1)
        heights[half::step, ::step] = wibbled(around + corners + np.roll(corners, -1, 0))
        step, amplitude = half, amplitude / decay
    heights -= heights.min()
    return heights / heights.max()


def snow(x: np.ndarray, c: tuple[float, ...], rngs: Sequence[Generator]) -> np.ndarray:
    """Whitens the image and lets flakes fall on it, each with its reflection in the image's middle.

    Args:
        x: the images.
        c: mean and deviation of what flakes are cut from, their magnification, the threshold above which there are
            any, radius and deviation of their motion's blur, how much of the image's colour is left.
        rngs: the images' generators.
    """
    centre, spread, factor, threshold, radius, sigma, kept = c
    flakes = np.stack([rng.normal(centre, spread, x.shape[2:]) for rng in rngs])[:, None]
    flakes = zoomed(flakes, factor)
    flakes = np.floor(255 * np.where(flakes < threshold, 0, flakes).clip(0, 1)) / 255
    flakes = streaked(flakes, radius, sigma, np.array([rng.uniform(-135, -45) for rng in rngs]))
    grey = np.tensordot(x, LUMA, (1, 0))[:, None] if x.shape[1] == 3 else x
    pale = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    return pale + flakes + np.rot90(flakes, 2, (2, 3))
