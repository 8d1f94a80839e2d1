"""What needs OpenCV or ImageMagick in the published files, against these libraries, from the same draws.

``pip install opencv-python-headless Wand``, and ImageMagick's libmagickwand; where one of them is missing its tests
skip, and :mod:`test_corruptions` alone tells.
"""

import ctypes
from functools import cache

import numpy as np
import pytest
from numpy.random import default_rng
from scipy import ndimage
from shift_helpers import photographs

from shift import CORRUPTIONS, corrupt
from shift.weather import LUMA

IMAGES = photographs()[::5]
every_severity = pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])


def c(corruption, severity):
    return CORRUPTIONS[corruption][1][severity - 1]


def assert_alike(corruption, severity, change, share):
    """``change`` of an image (H, W, 3) in [0, 1] and its generator is at most one grey level away, and that rarely."""
    found = corrupt(IMAGES, range(len(IMAGES)), corruption, severity).transpose(0, 2, 3, 1)
    draws = [default_rng([0, severity, index, *corruption.encode()]) for index in range(len(IMAGES))]
    images = IMAGES.transpose(0, 2, 3, 1) / 255
    expected = [np.uint8(255 * change(x, rng).clip(0, 1)) for x, rng in zip(images, draws, strict=True)]
    distance = np.abs(found.astype(int) - np.stack(expected).astype(int))
    assert distance.max() <= 1
    assert (distance > 0).mean() <= share


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2")


@cache
def magick():
    """ImageMagick's motion blur of an image (H, W) or (H, W, 3) in [0, 1], in 8 bits."""
    try:
        from wand.api import library
        from wand.image import Image
    except ImportError as error:
        pytest.skip(str(error).splitlines()[0])
    double = ctypes.c_double
    library.MagickMotionBlurImage.argtypes = (ctypes.c_void_p, double, double, double)

    def blurred(x, radius, sigma, angle):
        kind = "RGB" if x.ndim == 3 else "I"
        with Image.from_array(np.uint8(np.rint(255 * x)), kind) as image:
            library.MagickMotionBlurImage(image.wand, radius, sigma, angle)
            # Of the 16 bits that it computes in, a PNG of 8 keeps the upper ones.
            pixels = np.array(image.export_pixels(channel_map=kind, storage="short"))
        return (pixels // 257).reshape(x.shape) / 255

    return blurred


@every_severity
def test_defocus_blur_is_opencvs(cv2, severity):
    radius, alias = c("defocus_blur", severity)
    across = np.arange(-8, 9)
    disk = np.float32(across[:, None] ** 2 + across**2 <= radius**2)
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(3, 3), sigmaX=alias)
    assert_alike("defocus_blur", severity, lambda x, _: cv2.filter2D(x, -1, kernel), 0.1)


@every_severity
def test_elastic_transform_is_opencvs_and_scipys(cv2, severity):
    """OpenCV rounds where it looks to a thirty-second of a pixel."""
    amplitude, sigma, reach = (32 * part for part in c("elastic_transform", severity))

    def bent(x, rng):
        corners = np.float32([[26, 26], [26, 6], [6, 6]])  # (column, row)
        moved = corners + rng.uniform(-reach, reach, (3, 2))[:, ::-1]
        to = cv2.getAffineTransform(corners, np.float32(moved))
        x = cv2.warpAffine(np.float32(x), to, (32, 32), borderMode=cv2.BORDER_REFLECT_101)
        field = rng.uniform(-1, 1, (2, 32, 32))
        field = [amplitude * ndimage.gaussian_filter(part, sigma, mode="reflect", truncate=3) for part in field]
        places = np.indices((32, 32)) + field
        return np.stack([ndimage.map_coordinates(x[..., i], places, order=1, mode="reflect") for i in range(3)], -1)

    assert_alike("elastic_transform", severity, bent, 0.1)


@every_severity
def test_motion_blur_is_imagemagicks(severity):
    blurred = magick()
    assert_alike(
        "motion_blur", severity, lambda x, rng: blurred(x, *c("motion_blur", severity), rng.uniform(-45, 45)), 0.01
    )


@every_severity
def test_snow_is_imagemagicks(severity):
    blurred = magick()
    centre, spread, factor, threshold, radius, sigma, kept = c("snow", severity)

    def snowed(x, rng):
        layer, size = rng.normal(centre, spread, (32, 32)), int(np.ceil(32 / factor))
        top = (32 - size) // 2
        layer = ndimage.zoom(layer[top : top + size, top : top + size], factor, order=1)
        trim = (len(layer) - 32) // 2
        layer = layer[trim : trim + 32, trim : trim + 32]
        layer = np.floor(255 * np.where(layer < threshold, 0, layer).clip(0, 1)) / 255
        layer = blurred(layer, radius, sigma, rng.uniform(-135, -45))[..., None]
        grey = (x @ LUMA)[..., None]
        return kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5) + layer + layer[::-1, ::-1]

    assert_alike("snow", severity, snowed, 0.01)
