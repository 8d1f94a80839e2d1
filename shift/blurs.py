"""Blurs of five kinds; see :mod:`shift.noises` for what they are given."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from scipy import ndimage


def gaussian_blur(x: np.ndarray, c: float, _: Sequence[Generator]) -> np.ndarray:
    """A Gaussian of c pixels; the border's pixels go on outside, as scikit-image has it."""
    return ndimage.gaussian_filter(x, c, mode="nearest", axes=(2, 3))


def glass_blur(x: np.ndarray, c: tuple[float, int], rngs: Sequence[Generator]) -> np.ndarray:
    """Pixels take the place of their neighbours between two Gaussian blurs.

    The published files' code means to swap two pixels, but assigns views of one array, so that it copies: from the
    bottom right on, every pixel becomes itself or its neighbour above, to the left, or both. So it is here.

    Args:
        x: the images.
        c: the Gaussian's pixels and how often pixels move.
        rngs: the images' generators.
    """
    sigma, times = c
    x = np.floor(255 * gaussian_blur(x, sigma, rngs)) / 255
    size = x.shape[-1]
    inner = np.arange(2, size)
    steps = np.stack([rng.integers(-1, 1, (times, 2, size - 2, size - 2)) for rng in rngs])
    image, channel = np.ix_(range(len(x)), range(x.shape[1]))
    for moved in range(times):
        down, right = steps[:, moved, 0, None] + inner[:, None], steps[:, moved, 1, None] + inner
        x = x.copy()
        x[..., 2:, 2:] = x[image[..., None, None], channel[..., None, None], down, right]
    return gaussian_blur(x, sigma, rngs)


def defocus_blur(x: np.ndarray, c: tuple[float, float], _: Sequence[Generator]) -> np.ndarray:
    """A disk, antialiased by a Gaussian of 3 by 3 pixels; images are mirrored outside, as OpenCV has it.

    Args:
        x: the images.
        c: the disk's radius and the Gaussian's deviation, in pixels.
    """
    radius, alias = c
    across = np.arange(-3, 4)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(float)
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, weights / weights.sum(), axis, mode="constant")
    return ndimage.correlate(x, (disk / disk.sum())[None, None], mode="mirror")


def motion_blur(x: np.ndarray, c: tuple[float, float], rngs: Sequence[Generator]) -> np.ndarray:
    """The camera moves at an angle within 45 degrees of the horizontal."""
    return streaked(x, *c, np.array([rng.uniform(-45, 45) for rng in rngs]))


def streaked(x: np.ndarray, radius: float, sigma: float, angles: np.ndarray) -> np.ndarray:
    """ImageMagick's motion blur: a mean along a ray from each pixel, weighted by half a Gaussian, in 8 bits.

    Args:
        x: the images.
        radius: half the number of pixels that are averaged.
        sigma: the Gaussian's deviation, in pixels.
        angles: of each image's ray, (B,), clockwise from the right in degrees.
    """
    along = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(along**2) / (2 * sigma**2))
    weights /= weights.sum()
    radians = np.deg2rad(angles)[:, None]
    right, down = (np.ceil(along * part(radians) - 0.5).astype(int) for part in (np.cos, np.sin))
    rows, columns = (np.arange(size) for size in x.shape[2:])
    image = np.arange(len(x))[:, None, None]
    found = np.zeros_like(x)
    for weight, dx, dy in zip(weights, right.T, down.T, strict=True):
        y = (rows + dy[:, None]).clip(0, rows[-1])
        z = (columns + dx[:, None]).clip(0, columns[-1])
        # The channels go last where other axes are indexed around them.
        found += weight * x[image, :, y[:, :, None], z[:, None, :]].transpose(0, 3, 1, 2)
    return np.rint(65535 * found) // 257 / 255  # it computes in 16 bits, and drops the lower 8


def zoom_blur(x: np.ndarray, c: float, _: Sequence[Generator]) -> np.ndarray:
    """The mean of the image and of itself magnified by 1, 1.01, … up to c."""
    factors = np.arange(1, c, 0.01)  # which may end at c itself, by rounding: so it does in the published files
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The images' middle, magnified linearly to the whole."""
    size = x.shape[-1]
    kept = int(np.ceil(size / factor))
    top = (size - kept) // 2
    # Linear interpolation is a matrix for the rows and one for the columns: what it makes of the identity.
    matrix = ndimage.zoom(np.eye(size)[top : top + kept], (factor, 1), order=1)
    trim = (len(matrix) - size) // 2
    matrix = matrix[trim : trim + size]
    return matrix @ x @ matrix.T
