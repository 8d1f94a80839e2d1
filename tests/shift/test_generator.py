"""What holds for all corruptions: range, kind, draws that belong to images, severities, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shift_helpers import photographs, pictures

from datamodules.corrupted import COUNTED, EXTRAS
from shift import CORRUPTIONS, corrupt
from shift.generator import COLOURED

EVERY = sorted(CORRUPTIONS)
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow", "fog"}
RANDOM |= {"elastic_transform"}
# Those whose constants do not distort ever more: a smaller Gaussian but more moves, a field of larger amplitude on an
# image that is turned less, less colour and then more of it.
UNORDERED = {"glass_blur", "elastic_transform", "saturate"}


def test_all_but_two_of_the_published_corruptions_are_made():
    assert set(COUNTED) - set(CORRUPTIONS) == {"frost"}
    assert set(EXTRAS) - set(CORRUPTIONS) == {"spatter"}
    assert set(CORRUPTIONS) < {*COUNTED, *EXTRAS}
    assert (len(COUNTED), len(EXTRAS)) == (15, 4)
    assert all(len(constants) == 5 for _, constants in CORRUPTIONS.values())


@settings(max_examples=60, deadline=None)
@given(
    corruption=st.sampled_from(EVERY),
    severity=st.integers(1, 5),
    size=st.integers(8, 40),
    channels=st.sampled_from([1, 3]),
    index=st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 2**40),
    part=st.integers(0, 3),
)
def test_an_image_is_corrupted_alike_in_any_batch(corruption, severity, size, channels, index, seed, part):
    """Also: shape and kind stay, nothing given is changed, floats are the same pixels, and draws follow the index."""
    if channels == 1 and corruption in COLOURED:
        return
    images = pictures(len(index), size, channels, seed % 1000)
    before = images.copy()
    whole = corrupt(images, index, corruption, severity, seed)
    assert whole.shape == images.shape
    assert whole.dtype == np.uint8
    assert (images == before).all()
    one = part % len(index)
    alone = corrupt(images[one : one + 1], index[one : one + 1], corruption, severity, seed)
    assert (alone[0] == whole[one]).all()
    for kind in (np.float32, np.float64):
        floats = corrupt((images / 255).astype(kind), index, corruption, severity, seed)
        assert floats.dtype == kind
        assert (np.rint(255 * floats) == whole).all()
        assert np.allclose(255 * floats, whole, atol=1e-4)


@pytest.mark.parametrize("corruption", EVERY)
def test_draws_follow_index_severity_and_seed(corruption):
    """Equal images with other indices, or other seeds, differ exactly where a corruption draws anything."""
    images = np.repeat(pictures(1), 3, 0)
    found = corrupt(images, [5, 6, 5], corruption, 2, 1)
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any() == (corruption in RANDOM)
    assert (corrupt(images, [5, 6, 5], corruption, 2, 2)[0] != found[0]).any() == (corruption in RANDOM)


def test_equal_constants_draw_otherwise_at_each_severity():
    """Speckle's constants differ, so noise is compared by its sign."""
    images = np.full((1, 3, 32, 32), 128, np.uint8)
    signs = [corrupt(images, [0], "gaussian_noise", severity).astype(int) > 127 for severity in (1, 2)]
    assert 0.4 < (signs[0] == signs[1]).mean() < 0.6


@pytest.mark.parametrize("corruption", [name for name in EVERY if name not in UNORDERED])
def test_severity_distorts_ever_more(corruption):
    images = photographs()
    far = [
        np.abs(corrupt(images, range(len(images)), corruption, severity).astype(int) - images).mean()
        for severity in range(1, 6)
    ]
    assert far == sorted(far)
    assert far[4] > far[0]


@pytest.mark.parametrize("corruption", EVERY)
def test_every_severity_changes_images(corruption):
    images = photographs()
    for severity in range(1, 6):
        found = corrupt(images, range(len(images)), corruption, severity)
        assert 0 < np.abs(found.astype(int) - images).mean() < 80


@pytest.mark.parametrize(
    ("images", "index", "corruption", "severity", "said"),
    [
        (pictures(1), [0], "frost", 1, "no 'frost' of severity 1"),
        (pictures(1), [0], "fog", 6, "no 'fog' of severity 6"),
        (pictures(1), [0], "fog", 0, "no 'fog' of severity 0"),
        (pictures(1, size=7), [0], "fog", 1, r"\(1, 3, 7, 7\) cannot"),
        (pictures(1)[..., :20], [0], "fog", 1, r"\(1, 3, 32, 20\) cannot"),
        (pictures(1)[:, :2], [0], "fog", 1, r"\(1, 2, 32, 32\) cannot"),
        (pictures(1)[0], [0], "fog", 1, r"\(3, 32, 32\) cannot"),
        (pictures(2), [0], "fog", 1, "1 indices for 2 images"),
        (pictures(1, channels=1), [0], "saturate", 1, "grey images"),
        (pictures(1) / 127.5 - 1, [0], "fog", 1, r"float64 in \[-0.6"),
        (pictures(1) * 1.0, [0], "fog", 1, r"expected uint8 or floats in \[0, 1\]"),
        (pictures(1).astype(np.int64), [0], "fog", 1, "Images are int64"),
        (np.full((1, 3, 32, 32), np.nan), [0], "fog", 1, "Images are float64"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, index, corruption, severity, said):
    with pytest.raises(ValueError, match=said):
        corrupt(images, index, corruption, severity)


def test_no_images_stay_none():
    assert corrupt(pictures(2)[:0] / 255, [], "contrast", 1).shape == (0, 3, 32, 32)
