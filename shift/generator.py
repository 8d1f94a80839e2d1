"""CIFAR-C-like images: the corruptions of Hendrycks & Dietterich (2019), made here with CIFAR-C's constants.

They are not CIFAR-10-C, whose files were made by other libraries' releases and other draws, and no figure of theirs is
one of CIFAR-10-C. Left out are frost, which needs photographs, and spatter, which needs OpenCV's edges. The constants
are those of images of 32 by 32 pixels; larger images are blurred by as many pixels, and so by less.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng

from datamodules.corrupted import SEVERITIES
from shift.blurs import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from shift.digital import brightness, contrast, elastic_transform, jpeg_compression, pixelate, saturate
from shift.noises import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from shift.weather import fog, snow

SMALLEST = 8  # pixels across, below which the corruptions' neighbourhoods are larger than the image

Change = Callable[[np.ndarray, Any, Sequence[Generator]], np.ndarray]

# What makes it, and its constant at each severity, in the order of the published files.
CORRUPTIONS: dict[str, tuple[Change, tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
COLOURED = ("saturate",)  # what means nothing for grey images


def corrupt(images: np.ndarray, index: Sequence[int], corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupts images; what an image draws follows from its index, whatever batch it is in.

    Args:
        images: square, (B, C, H, H) with C of 1 or 3, uint8; or floats in [0, 1], which are rounded to 8 bits.
        index: the images' indices in their dataset, (B,).
        corruption: one of ``CORRUPTIONS``.
        severity: from 1 to 5.
        seed: what the draws follow from, with corruption, severity and index.

    Returns:
        New images of the same shape and kind, in 8 bits (cut off, not rounded, as the published files are): floats are
        multiples of 1/255.

    Raises:
        ValueError: for an unknown corruption or severity, or images of another shape, kind or range.
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"There is no {corruption!r} of severity {severity}: corruptions are {', '.join(CORRUPTIONS)}, "
            f"severities 1 to {SEVERITIES[-1]}."
        )
    _require(images, index, corruption)
    whole = images.dtype == np.uint8
    x = images / 255 if whole else np.rint(255 * images.astype(float)) / 255
    change, constants = CORRUPTIONS[corruption]
    rngs = [default_rng([seed, severity, int(i), *corruption.encode()]) for i in index]
    changed = (255 * change(x, constants[severity - 1], rngs).clip(0, 1)).astype(np.uint8)
    return changed if whole else (changed / 255).astype(images.dtype)


def _require(images: np.ndarray, index: Sequence[int], corruption: str) -> None:
    shape = images.shape
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or shape[2] < SMALLEST:
        raise ValueError(
            f"Images of shape {shape} cannot be corrupted: give (B, C, H, H) with 1 or 3 channels and at least "
            f"{SMALLEST} pixels across."
        )
    if shape[1] == 1 and corruption in COLOURED:
        raise ValueError(f"{corruption} is of colours, which grey images have not: leave it out.")
    if len(index) != len(images):
        raise ValueError(f"There are {len(index)} indices for {len(images)} images, expected one for each.")
    if images.dtype != np.uint8 and not (
        np.issubdtype(images.dtype, np.floating) and (not images.size or 0 <= images.min() <= images.max() <= 1)
    ):
        span = f" in [{images.min():g}, {images.max():g}]" if images.size else ""
        raise ValueError(f"Images are {images.dtype}{span}, expected uint8 or floats in [0, 1].")
