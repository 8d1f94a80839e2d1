"""Measures of two maps against independent computations, and the bootstrap against SciPy's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from scipy.spatial import distance
from skimage.metrics import structural_similarity

from interpret.measures import MEASURES, bootstrap, interval, resample, top_overlap

SHAPES = st.tuples(st.integers(1, 3), st.integers(3, 9), st.integers(3, 9))
# Few different values, so that ties and zeros are common; or any.
ENTRIES = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e3, 1e3, width=32, allow_subnormal=False))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@st.composite
def pairs(draw):
    shape = draw(SHAPES)
    return [draw(arrays.arrays(np.float64, shape, elements=ENTRIES)) for _ in range(2)]


def strength(one):
    return np.abs(one / np.abs(one).max()).sum(0)


def cosine(a, b):
    """By SciPy's distance, of maps scaled to the same size lest small ones vanish."""
    return 1 - distance.cosine(a.ravel() / np.abs(a).max(), b.ravel() / np.abs(b).max())


def top(a, b):
    """Sets of the strongest tenth of the pixels; Python's sort is stable, too."""
    chosen = []
    for one in (a, b):
        pixels = strength(one).ravel()
        order = sorted(range(len(pixels)), key=lambda place: -pixels[place])
        chosen.append(set(order[: max(1, round(0.1 * len(pixels)))]))
    return len(chosen[0] & chosen[1]) / len(chosen[0])


def ssim(a, b):
    a, b = ((s - s.min()) / (s.max() - s.min()) for s in map(strength, (a, b)))
    side = min(7, *a.shape)
    return structural_similarity(a, b, data_range=1, win_size=side - (side % 2 == 0))


EXPECTED = {
    "absolute cosine": lambda a, b: cosine(np.abs(a), np.abs(b)),
    "signed cosine": cosine,
    "Pearson": lambda a, b: stats.pearsonr(a.ravel(), b.ravel()).statistic,
    "Spearman": lambda a, b: stats.spearmanr(a.ravel(), b.ravel()).statistic,
    "top-10 % overlap": top,
    "SSIM": ssim,
}


def measured(name, a, b):
    return MEASURES[name](torch.tensor(a)[None], torch.tensor(b)[None]).item()


def spread(name, one):
    """How far a map is from one that the measure says nothing about."""
    if name.endswith("cosine"):
        return np.abs(one).max()
    of = one if name in ("Pearson", "Spearman") else np.abs(one).sum(0)
    return np.ptp(of) / max(np.abs(one).max(), 1e-300)


@pytest.mark.parametrize("name", MEASURES)
@given(pairs())
@settings(max_examples=20, deadline=None)
def test_a_measure_is_what_others_compute(name, pair):
    if min(spread(name, one) for one in pair) < 1e-6:  # where rounding decides what is constant
        return
    assert measured(name, *pair) == pytest.approx(EXPECTED[name](*pair), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (1, 3, 3), (2, 5, 12)])
def test_a_measure_is_what_others_compute_on_maps_of_real_sizes(name, shape):
    a = np.random.default_rng(0).normal(size=(4, *shape)) ** 3
    b = a + np.random.default_rng(1).normal(size=a.shape)
    found = MEASURES[name](torch.tensor(a), torch.tensor(b))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([EXPECTED[name](*pair) for pair in zip(a, b, strict=True)], abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
@given(pairs(), st.sampled_from([1e-200, 1e-38, 1e-3, 7.0, 1e30]))
@settings(max_examples=20, deadline=None)
def test_a_positive_factor_changes_nothing(name, pair, factor):
    a, b = pair
    if np.abs(a).max() == 0 or spread(name, a) < 1e-6 or spread(name, b) < 1e-6:
        return
    if name in ("top-10 % overlap", "Spearman"):
        factor = 2.0 ** round(math.log2(factor))  # what rounding makes equal is a tie
    a = np.round(a, 3)  # no entry so small that the factor makes it subnormal
    if spread(name, a) >= 1e-6:
        assert measured(name, factor * a, b) == pytest.approx(measured(name, a, b), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
@given(pairs())
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_two_does_not_matter_and_the_range_is_kept(name, pair):
    found = measured(name, *pair)
    assert found == pytest.approx(measured(name, *pair[::-1]), abs=1e-12, nan_ok=True)
    assert math.isnan(found) or (0 if name[0] in "at" else -1) <= found <= 1 + 1e-12


@pytest.mark.parametrize("name", MEASURES)
def test_a_map_and_itself_score_one(name):
    maps = torch.randn(20, 3, 8, 8)
    assert MEASURES[name](maps, 3 * maps).tolist() == pytest.approx([1] * 20, abs=1e-9)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_does_not_depend_on_the_batch_around_it(name, dtype):
    a, b = torch.randn(2, 7, 3, 8, 8, dtype=dtype)
    a[3] = 0
    whole = MEASURES[name](a, b)
    alone = torch.cat([MEASURES[name](a[i : i + 1], b[i : i + 1]) for i in range(7)])
    assert whole.tolist() == pytest.approx(alone.tolist(), abs=1e-15, nan_ok=True)
    assert MEASURES[name](a[:0], b[:0]).shape == (0,)


UNDEFINED = {
    "zero": dict.fromkeys(MEASURES, True),
    # A constant map points somewhere, but correlates with nothing.
    "constant": {name: not name.endswith("cosine") for name in MEASURES},
    "not a number": dict.fromkeys(MEASURES, True),
    "infinite": dict.fromkeys(MEASURES, True),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("kind", UNDEFINED)
@pytest.mark.parametrize("side", [0, 1])
def test_a_measure_is_nan_where_it_says_nothing_and_only_there(name, kind, side):
    pair = [torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8)]
    expected = MEASURES[name](*pair)
    if kind in ("zero", "constant"):
        pair[side][1] = 0 if kind == "zero" else 0.3
    else:
        pair[side][1, 0, 4, 4] = math.nan if kind == "not a number" else -math.inf
    found = MEASURES[name](*pair)
    assert found.isnan().tolist() == [False, UNDEFINED[kind][name], False]
    assert found[::2].tolist() == expected[::2].tolist()


def test_gradients_of_a_hardened_network_are_no_zeros():
    """At T = 100 amplitudes are near 1e-40, whose squares no float32 holds."""
    maps = torch.randn(4, 1, 8, 8).mul(100).round() * 1e-43  # subnormal
    assert (maps != 0).any()
    for name, measure in MEASURES.items():
        assert measure(maps, maps).tolist() == pytest.approx([1] * 4, abs=1e-9), name


def test_maps_of_points_in_the_plane_have_cosines_alone():
    points = torch.randn(5, 2, 1, 1)
    defined = {name: not measure(points, points).isnan().any() for name, measure in MEASURES.items()}
    assert defined == {name: name in ("absolute cosine", "signed cosine", "Pearson", "Spearman") for name in MEASURES}


def test_maps_smaller_than_three_pixels_have_no_structure():
    assert MEASURES["SSIM"](torch.randn(2, 1, 2, 9), torch.randn(2, 1, 2, 9)).isnan().all()


def test_of_equally_strong_pixels_the_first_are_the_strongest():
    a, b = torch.zeros(2, 1, 1, 4, 5)
    a[0, 0, 3, 4] = b[0, 0, 3, 4] = 1  # the one that stands out, and of the others the first: both agree on two
    assert top_overlap(a, b).item() == 1
    b = torch.zeros(1, 1, 4, 5)
    b[0, 0, 0, 0] = 1  # and then the second pixel, not the first
    assert top_overlap(a, b).item() == 0.5
    assert top_overlap(a, a, share=0.001).item() == 1  # one pixel at least


@pytest.mark.parametrize("shapes", [((2, 1, 8, 8), (2, 3, 8, 8)), ((2, 8, 8), (2, 8, 8)), ((2, 64), (2, 64))])
@pytest.mark.parametrize("name", MEASURES)
def test_maps_of_other_shapes_are_refused(name, shapes):
    with pytest.raises(ValueError, match=r"\(B, C, H, W\) of one shape, got"):
        MEASURES[name](*(torch.randn(shape) for shape in shapes))


def test_unrelated_maps_score_what_chance_gives():
    a, b = torch.randn(2, 4000, 1, 12, 12)
    chance = {"absolute cosine": 2 / math.pi, "top-10 % overlap": 14 / 144, "SSIM": None}
    for name, measure in MEASURES.items():
        values = measure(a, b)
        error = values.std().item() / math.sqrt(len(values))
        expected = chance.get(name, 0.0)
        # The cosine of a finite map is a little less than the ratio of expectations: by about 1 / n of it.
        slack = 0.01 if name == "absolute cosine" else 0
        if expected is not None:
            assert abs(values.mean().item() - expected) < 3 * error + slack, name


# --- the bootstrap ---


@pytest.mark.parametrize("n", [2, 7, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_is_scipys(n, seed):
    values = np.random.default_rng(5).normal(0.3, 0.2, n)
    mean, low, high = bootstrap(values, seed=seed, draws=500)
    # The same draws from the same generator: not alike, but equal.
    scipys = stats.bootstrap(
        (np.sort(values),), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == pytest.approx((scipys.low, scipys.high), abs=1e-12)


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(size=400)
    _, low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1)), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_images_does_not_matter(values, random):
    values = np.where(values > 0.8, np.nan, values)
    order = random.sample(range(len(values)), len(values))
    assert bootstrap(values, draws=50) == pytest.approx(bootstrap(values[order], draws=50), nan_ok=True, abs=1e-12)
    table = np.stack([values, values[::-1]], 1)
    assert resample(table, draws=20) == pytest.approx(resample(table[order], draws=20), nan_ok=True, abs=1e-12)


def test_the_undefined_are_left_out():
    values = np.random.default_rng(0).random(30)
    gaps = np.concatenate([values, [math.nan] * 10])
    assert bootstrap(gaps) == bootstrap(values)
    assert all(map(math.isnan, bootstrap(np.array([math.nan, math.nan]))))
    assert all(map(math.isnan, bootstrap(np.array([]))))
    assert bootstrap(np.array([0.4, math.nan])) == (0.4, 0.4, 0.4)


def test_columns_are_drawn_together_and_their_means_skip_what_is_undefined(monkeypatch):
    rng = np.random.default_rng(3)
    values = rng.random((25, 3))
    values[rng.random((25, 3)) < 0.2] = math.nan
    values = values[np.lexsort(values.T)]
    drawn = np.random.default_rng(9).integers(0, 25, (40, 25))
    expected = np.array([np.nanmean(values[rows], axis=0) for rows in drawn])
    assert resample(values, seed=9, draws=40) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr("interpret.measures.CHUNK", 60)  # two draws at a time
    assert resample(values, seed=9, draws=40) == pytest.approx(expected, abs=1e-12)


def test_draws_without_a_defined_image_are_no_part_of_the_interval():
    means = resample(np.array([[0.5], [math.nan]]), draws=100)
    assert np.isnan(means).any()
    assert interval(means[:, 0]) == (0.5, 0.5)
