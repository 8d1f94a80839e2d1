"""One crop and flip per image: torchvision's, uniform, repeatable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional as TF

from attacks.draws import Draws
from datamodules.augment import crop_and_flip


def coordinates(count: int, size: int) -> torch.Tensor:
    """Images whose pixels say where they come from: channel 0 the row + 1, channel 1 the column + 1."""
    rows = torch.arange(1, size + 1, dtype=torch.uint8)
    image = torch.stack([rows[:, None].expand(size, size), rows.expand(size, size)])
    return image.expand(count, -1, -1, -1)


def offsets(count: int, seed: int) -> torch.Tensor:
    """The offsets that were drawn, read from the pixel at (10, 10) of unflipped crops; each in [0, 8]."""
    crops = crop_and_flip(coordinates(count, 20), Draws(torch.arange(count), seed), flip=False)
    return crops[:, :, 10, 10].long() - 11 + 4


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (2, True), (0, True)])
def test_equals_torchvision_per_image(dtype, padding, flip) -> None:
    images = torch.randint(256, (40, 3, 10, 10), generator=torch.Generator().manual_seed(0)).to(dtype)
    index = torch.arange(100, 140)
    got = crop_and_flip(images, Draws(index, (1, 2)), padding, flip)
    draws = Draws(index, (1, 2))
    tops, lefts = draws.integers(2 * padding + 1), draws.integers(2 * padding + 1)
    flips = draws.integers(2) if flip else torch.zeros(40)
    for image, result, top, left, flipped in zip(images, got, tops, lefts, flips, strict=True):
        expected = TF.crop(TF.pad(image, [padding]), int(top), int(left), 10, 10)
        assert result.equal(TF.hflip(expected) if flipped else expected)
    assert got.dtype == dtype


def test_the_81_offsets_are_uniform_and_differ_inside_a_batch() -> None:
    top, left = offsets(16_200, seed=3).unbind(1)
    assert stats.chisquare(torch.bincount(top * 9 + left, minlength=81).numpy()).pvalue > 1e-3


def test_half_of_the_images_are_flipped_whatever_their_offset() -> None:
    count = 20_000
    crops = crop_and_flip(coordinates(count, 20), Draws(torch.arange(count), 3))
    flipped = crops[:, 1, 10, 10] < crops[:, 1, 10, 9]
    assert stats.binomtest(int(flipped.sum()), count).pvalue > 1e-3
    table = torch.stack([torch.bincount(offsets(count, 3)[flipped == side, 1], minlength=9) for side in (False, True)])
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def cells(crops: torch.Tensor) -> torch.Tensor:
    """How many crops were made with each of the 81 offsets, mirrored or not: counts of the 162 kinds."""
    right, left = crops[:, 1, 10, 10].long(), crops[:, 1, 10, 9].long()
    flipped = right < left  # then the pixel at column 10 is that at column 9 of the window
    top = crops[:, 0, 10, 10].long() - 7
    return torch.bincount((top * 9 + torch.minimum(right, left) - 6) * 2 + flipped, minlength=162)


def test_the_162_kinds_are_as_frequent_as_torchvisions() -> None:
    count = 8_100
    ours = cells(crop_and_flip(coordinates(count, 20), Draws(torch.arange(count), 5)))
    torch.manual_seed(0)
    theirs = transforms.Compose([transforms.RandomCrop(20, padding=4), transforms.RandomHorizontalFlip()])
    reference = cells(torch.stack([theirs(image) for image in coordinates(count, 20)]))
    assert len(ours) == len(reference) == 162
    assert stats.chi2_contingency(torch.stack([ours, reference]).numpy()).pvalue > 1e-3
    assert stats.chisquare(ours.numpy()).pvalue > 1e-3


def test_repeats_with_the_seed_and_changes_with_it() -> None:
    images = coordinates(64, 16)
    first, again, other = (crop_and_flip(images, Draws(torch.arange(64), seed)) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.booleans())
@settings(deadline=None)
def test_any_shape_is_cropped_as_torchvision_crops_it(count, channels, height, width, padding, flip) -> None:
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8)
    index = torch.arange(count)
    got = crop_and_flip(images, Draws(index, padding), padding, flip)
    draws = Draws(index, padding)
    tops, lefts = draws.integers(2 * padding + 1).tolist(), draws.integers(2 * padding + 1).tolist()
    for image, result, top, left, flipped in zip(images, got, tops, lefts, draws.integers(2), strict=True):
        expected = TF.crop(TF.pad(image, [padding]), top, left, height, width)
        assert result.equal(TF.hflip(expected) if flip and flipped else expected)


def test_the_input_is_left_alone() -> None:
    images = torch.rand(4, 1, 8, 8)
    before = images.clone()
    crop_and_flip(images, Draws(torch.arange(4)))
    assert images.equal(before)
