"""Every corruption against an independent computation: scikit-image, SciPy, Pillow, a closed form, a naive loop."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from scipy import ndimage, signal
from shift_helpers import pictures
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian
from skimage.transform import estimate_transform, warp
from skimage.util import random_noise
from torchvision.io import decode_jpeg, encode_jpeg

from shift import CORRUPTIONS, corrupt
from shift.blurs import streaked, zoomed
from shift.weather import plasma

IMAGES = pictures()
SEVERITIES = (1, 2, 3, 4, 5)
every_severity = pytest.mark.parametrize("severity", SEVERITIES)


def c(corruption, severity):
    return CORRUPTIONS[corruption][1][severity - 1]


def made(corruption, severity, images=IMAGES):
    return corrupt(images, range(len(images)), corruption, severity)


def per_image(change, images=IMAGES):
    """What a function of an (H, W, 3) float image makes, cut off to 8 bits."""
    changed = [change(image.transpose(1, 2, 0) / 255) for image in images]
    return np.uint8(255 * np.stack(changed).clip(0, 1)).transpose(0, 3, 1, 2)


def assert_alike(found, expected, share=0.02):
    """Equal but for rounding: at most one grey level away, and that rarely."""
    distance = np.abs(found.astype(int) - expected.astype(int))
    assert distance.max() <= 1
    assert (distance > 0).mean() <= share


def grey(value, count=200, size=16):
    return np.full((count, 3, size, size), value, np.uint8)


@every_severity
def test_gaussian_noise_has_its_deviation(severity):
    found = made("gaussian_noise", severity, grey(128)) / 255 - 128 / 255
    # Cutting off to 8 bits takes away half a grey level and adds the variance of a uniform draw.
    assert found.mean() == pytest.approx(-0.5 / 255, abs=4 * c("gaussian_noise", severity) / np.sqrt(found.size))
    assert found.std() == pytest.approx(np.hypot(c("gaussian_noise", severity), 1 / 255 / np.sqrt(12)), rel=0.02)


@every_severity
def test_shot_noise_is_poisson(severity):
    """Mean and variance of a count are equal, but for what 8 bits add; at 250 photons a level is almost a photon."""
    photons = c("shot_noise", severity)
    counts = (made("shot_noise", severity, grey(77)) + 0.5) / 255 * photons
    expected = 77 / 255 * photons
    assert counts.mean() == pytest.approx(expected, rel=0.01)
    assert counts.var() == pytest.approx(expected + photons**2 / 12 / 255**2, rel=0.05)


@every_severity
def test_impulse_noise_is_salt_and_pepper(severity):
    found = made("impulse_noise", severity, grey(128))
    peer = random_noise(grey(128) / 255, "s&p", amount=c("impulse_noise", severity), rng=0)
    for value in (0, 1):
        share = (found == 255 * value).mean()
        assert share == pytest.approx(c("impulse_noise", severity) / 2, rel=0.1)
        assert share == pytest.approx((peer == value).mean(), rel=0.15)
    assert set(np.unique(found)) == {0, 128, 255}


@every_severity
def test_speckle_noise_grows_with_the_value(severity):
    for value in (60, 120):
        found = made("speckle_noise", severity, grey(value)) / 255
        expected = np.hypot(c("speckle_noise", severity) * value / 255, 1 / 255 / np.sqrt(12))
        assert found.std() == pytest.approx(expected, rel=0.02)


@every_severity
def test_gaussian_blur_is_scikit_images(severity):
    sigma = c("gaussian_blur", severity)
    assert_alike(made("gaussian_blur", severity), per_image(lambda x: gaussian(x, sigma, channel_axis=-1)), 0)


@every_severity
def test_glass_blur_is_the_loop_that_copies(severity):
    sigma, times = c("glass_blur", severity)
    expected = []
    for index, image in enumerate(IMAGES):
        rng = default_rng([0, severity, index, *b"glass_blur"])
        x = np.uint8(255 * gaussian(image.transpose(1, 2, 0) / 255, sigma, channel_axis=-1))
        steps = rng.integers(-1, 1, (times, 2, 30, 30))
        for moved in steps:
            for row in range(31, 1, -1):
                for column in range(31, 1, -1):
                    down, right = moved[:, row - 2, column - 2]
                    x[row, column] = x[row + down, column + right]
        expected.append(np.uint8(255 * gaussian(x / 255, sigma, channel_axis=-1)).transpose(2, 0, 1))
    assert_alike(made("glass_blur", severity), np.stack(expected), 0)


@every_severity
def test_defocus_blur_is_a_convolution_with_an_antialiased_disk(severity):
    radius, alias = c("defocus_blur", severity)
    rows, columns = np.mgrid[-8:9, -8:9]
    disk = (rows**2 + columns**2 <= radius**2).astype(float)
    small = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    kernel = signal.convolve2d(disk, np.outer(small, small), "same")
    kernel /= kernel.sum()

    def blurred(x):
        padded = np.pad(x, [(8, 8), (8, 8), (0, 0)], "reflect")
        return np.stack([signal.convolve2d(padded[..., i], kernel, "valid") for i in range(3)], -1)

    assert_alike(made("defocus_blur", severity), per_image(blurred), 0.05)


def test_motion_blur_along_an_axis_is_a_correlation_with_half_a_gaussian():
    x = IMAGES / 255
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 1.5**2))
    for angle, axis in ((0, 3), (90, 2)):
        expected = ndimage.correlate1d(x, weights / weights.sum(), axis, mode="nearest", origin=-6)
        found = streaked(x, 6, 1.5, np.full(len(x), angle))
        assert np.abs(found - expected).max() <= 1.01 / 255
        assert np.abs(found - expected).max() > 0.1 / 255  # in 8 bits


def test_motion_blur_of_a_point_draws_its_ray():
    """ImageMagick's: light comes along the ray, so a point leaves a trail against it, of half a Gaussian."""
    x = np.zeros((1, 1, 33, 33))
    x[0, 0, 16, 16] = 1
    (trail,) = streaked(x, 6, 2, np.array([45.0]))[0]
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2**2))
    # On the diagonal two pixels of the ray may be nearest to the same one.
    expected = np.bincount(np.rint(np.arange(13) / np.sqrt(2)).astype(int), weights / weights.sum())
    assert np.allclose(np.diag(trail)[16 - np.arange(len(expected))], expected, atol=1 / 255)
    assert trail.sum() == np.trace(trail)


@every_severity
def test_motion_blur_leaves_what_does_not_vary(severity):
    assert (made("motion_blur", severity, grey(201, 3)) == 201).all()


def test_zoomed_is_scipys_zoom_of_the_middle():
    x = IMAGES / 255
    for factor, kept in ((1.0, 32), (1.06, 31), (1.25, 26), (2.25, 15)):
        top = (32 - kept) // 2
        whole = ndimage.zoom(x[:, :, top : top + kept, top : top + kept], (1, 1, factor, factor), order=1)
        trim = (whole.shape[-1] - 32) // 2
        assert np.allclose(zoomed(x, factor), whole[:, :, trim : trim + 32, trim : trim + 32], atol=1e-12)


@every_severity
def test_zoom_blur_keeps_the_middle_and_what_does_not_vary(severity):
    assert (np.abs(made("zoom_blur", severity, grey(201, 2)).astype(int) - 201) <= 1).all()
    x = np.zeros((1, 3, 33, 33), np.uint8)
    x[:, :, 16, 16] = 255
    found = made("zoom_blur", severity, x)[0, 0]
    assert np.unravel_index(found.argmax(), found.shape) == (16, 16)


@every_severity
def test_fog_keeps_the_lightest_value_and_adds_one_cloud_to_all_channels(severity):
    weight = c("fog", severity)[0]
    black_and_white = np.zeros((4, 3, 32, 32), np.uint8)
    black_and_white[:, :, :, 16:] = 255
    cloud = made("fog", severity, black_and_white)[..., :16] / 255 * (1 + weight) / weight
    assert -1e-9 <= cloud.min() <= cloud.max() <= 1 + 1e-9
    assert np.ptp(cloud, 1).max() == 0
    assert not np.allclose(cloud[0], cloud[1])


@pytest.mark.parametrize("decay", [3, 2.5, 2, 1.75])
def test_plasma_roughens_as_its_amplitude_decays(decay):
    """A middle differs from its corners' mean by a uniform draw of half-width ``amplitude²``, less on a finer grid."""
    fields = np.stack([plasma(64, decay, default_rng(seed)) for seed in range(200)])
    assert (fields.min((1, 2)) == 0).all()
    assert (fields.max((1, 2)) == 1).all()

    def wobble(step):
        coarse = fields[:, ::step, ::step]
        corners = sum(np.roll(coarse, shift, (1, 2)) for shift in ((0, 0), (-1, 0), (0, -1), (-1, -1)))
        return (fields[:, step // 2 :: step, step // 2 :: step] - corners / 4).std((1, 2))

    ratio = wobble(16) / wobble(8)
    assert np.median(ratio) == pytest.approx(decay**2, rel=0.1)


@every_severity
def test_snow_whitens_and_falls_twice(severity):
    kept = c("snow", severity)[-1]
    black = made("snow", severity, grey(0, 20, 32)) / 255
    # The flakes' layer and its reflection fall on what was whitened, which is (1 - kept) / 2 of black.
    assert black.min() == pytest.approx((1 - kept) / 2, abs=1 / 255)
    assert black.max() > black.min() + 0.1
    assert (black == np.rot90(black, 2, (2, 3))).all()
    assert (made("snow", severity, grey(255, 3)) == 255).all()
    # They fall: neighbours above one another are more alike than those beside.
    flakes = black - black.min()
    assert (flakes * np.roll(flakes, 1, 2)).sum() > 1.2 * (flakes * np.roll(flakes, 1, 3)).sum()


def test_snow_takes_its_share_of_the_colour():
    """Where no flake falls, the image is mixed with what is half as light again, and half of white more."""
    kept = c("snow", 2)[-1]
    x = pictures(30) / 255
    luma = (x * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdims=True)
    pale = (kept * x + (1 - kept) * np.maximum(x, 1.5 * luma + 0.5)).clip(0, 1)
    found = made("snow", 2, pictures(30)) / 255
    assert (found >= pale - 1.01 / 255).all()
    assert (np.abs(found - pale) <= 1.01 / 255).mean() > 0.2


@every_severity
def test_brightness_and_saturation_are_those_of_scikit_images_hsv(severity):
    add = c("brightness", severity)
    times, plus = c("saturate", severity)

    def brighter(x):
        hsv = rgb2hsv(x)
        return hsv2rgb(np.stack([hsv[..., 0], hsv[..., 1], (hsv[..., 2] + add).clip(0, 1)], -1))

    def richer(x):
        hsv = rgb2hsv(x)
        return hsv2rgb(np.stack([hsv[..., 0], (hsv[..., 1] * times + plus).clip(0, 1), hsv[..., 2]], -1))

    images = default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    assert_alike(made("brightness", severity, images), per_image(brighter, images))
    assert_alike(made("saturate", severity, images), per_image(richer, images))


@every_severity
def test_contrast_scales_the_distance_from_the_mean(severity):
    found = made("contrast", severity) / 255
    means = (IMAGES / 255).mean((2, 3), keepdims=True)
    expected = (means + c("contrast", severity) * (IMAGES / 255 - means)).clip(0, 1)
    assert ((expected - found > -1e-9) & (expected - found < 1 / 255 + 1e-9)).all()


@every_severity
def test_pixelate_is_a_mean_of_blocks_then_the_nearest(severity):
    small = int(32 * c("pixelate", severity))
    edges = np.floor(np.arange(small + 1) * 32 / small + 0.5).astype(int)
    blocks = np.stack([IMAGES[:, :, :, a:b].mean(3) for a, b in pairwise(edges)], 3)
    blocks = np.stack([blocks[:, :, a:b].mean(2) for a, b in pairwise(edges)], 2)
    nearest = np.floor((np.arange(32) + 0.5) * small / 32).astype(int)
    assert np.abs(made("pixelate", severity) - blocks[:, :, nearest][:, :, :, nearest]).max() <= 1


@every_severity
def test_jpeg_is_torchvisions(severity):
    images = torch.from_numpy(pictures(4))
    expected = [decode_jpeg(encode_jpeg(image, c("jpeg_compression", severity))) for image in images]
    assert (made("jpeg_compression", severity, images.numpy()) == torch.stack(expected).numpy()).mean() > 0.99


@every_severity
def test_elastic_transform_is_scikit_images_warps(severity):
    amplitude, sigma, reach = (32 * part for part in c("elastic_transform", severity))
    expected = []
    for index, image in enumerate(IMAGES):
        rng = default_rng([0, severity, index, *b"elastic_transform"])
        corners = np.array([[26, 26], [6, 26], [6, 6]])  # (row, column)
        moved = corners + rng.uniform(-reach, reach, (3, 2))
        inverse = estimate_transform("affine", moved[:, ::-1], corners[:, ::-1])
        straight = warp(image.transpose(1, 2, 0) / 255, inverse, order=1, mode="reflect")
        field = rng.uniform(-1, 1, (2, 32, 32))
        field = np.stack([amplitude * gaussian(part, sigma, mode="reflect", truncate=3) for part in field])
        places = np.indices((32, 32)) + field
        warped = [warp(straight[..., i], places, order=1, mode="symmetric") for i in range(3)]
        expected.append(np.uint8(255 * np.stack(warped).clip(0, 1)))
    assert_alike(made("elastic_transform", severity), np.stack(expected))
