"""What happens to images in cameras and files; see :mod:`shift.noises` for what these are given."""

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from numpy.random import Generator
from PIL import Image
from scipy import ndimage


def brightness(x: np.ndarray, c: float, _: Sequence[Generator]) -> np.ndarray:
    """Adds c to the value of HSV; to a grey image itself."""
    if x.shape[1] == 1:
        return x + c
    return _through_hsv(x, lambda hue, saturation, value: (hue, saturation, (value + c).clip(0, 1)))


def saturate(x: np.ndarray, c: tuple[float, float], _: Sequence[Generator]) -> np.ndarray:
    """Maps the saturation S of HSV to ``c_0 S + c_1``."""
    return _through_hsv(x, lambda hue, saturation, value: (hue, (c[0] * saturation + c[1]).clip(0, 1), value))


def _through_hsv(x: np.ndarray, change: Callable[..., tuple[np.ndarray, ...]]) -> np.ndarray:
    hsv = rgb_to_hsv(np.moveaxis(x, 1, -1))
    return np.moveaxis(hsv_to_rgb(np.stack(change(*np.moveaxis(hsv, -1, 0)), -1)), -1, 1)


def contrast(x: np.ndarray, c: float, _: Sequence[Generator]) -> np.ndarray:
    """Shrinks the distance from each channel's mean to c of itself."""
    means = x.mean((2, 3), keepdims=True)
    return (x - means) * c + means


def pixelate(x: np.ndarray, c: float, _: Sequence[Generator]) -> np.ndarray:
    """Shrinks the image to c of its size and back, by boxes."""
    height, width = x.shape[2:]
    small = int(width * c), int(height * c)
    return _by_pillow(x, lambda i: i.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX))


def jpeg_compression(x: np.ndarray, c: int, _: Sequence[Generator]) -> np.ndarray:
    """Writes the image as JPEG of quality c, with Pillow's halved colours, and reads it again."""

    def compressed(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=c)
        return Image.open(file)

    return _by_pillow(x, compressed)


def _by_pillow(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """What Pillow makes of each image in 8 bits."""
    pixels = np.moveaxis(np.rint(255 * x).astype(np.uint8), 1, -1)
    # Grey images have no axis of channels there.
    changed = [
        np.asarray(change(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image))) for image in pixels
    ]
    return np.moveaxis(np.stack(changed).reshape(pixels.shape), -1, 1) / 255


def elastic_transform(x: np.ndarray, c: tuple[float, float, float], rngs: Sequence[Generator]) -> np.ndarray:
    """Moves three points of the image, which maps it affinely, and then every pixel by a smooth field.

    OpenCV, which made the affine map of the published files, rounds coordinates to a thirty-second of a pixel; here
    they are exact.

    Args:
        x: the images.
        c: amplitude of the field, its smoothness and how far the points move, in widths of the image.
        rngs: the images' generators.
    """
    size = x.shape[-1]
    amplitude, sigma, reach = (size * part for part in c)
    middle, side = size // 2, size // 3
    corners = middle + side * np.array([[1, 1], [-1, 1], [-1, -1]])  # (row, column)
    pixels = np.indices(x.shape[2:])
    found = np.empty_like(x)
    for image, rng, out in zip(x, rngs, found, strict=True):
        moved = corners + rng.uniform(-reach, reach, (3, 2))
        # A pixel of the new image comes from where the map's inverse takes it.
        inverse = np.linalg.solve(np.c_[moved, np.ones(3)], corners).T
        field = rng.uniform(-1, 1, (2, *x.shape[2:]))
        field = amplitude * ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3, axes=(1, 2))
        for channel, target in zip(image, out, strict=True):
            straight = ndimage.affine_transform(channel, inverse[:, :2], inverse[:, 2], order=1, mode="mirror")
            ndimage.map_coordinates(straight, pixels + field, target, order=1, mode="reflect")
    return found
