"""Statistics beside SciPy's, and beside what their definitions say."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from attacks.records import wilson
from studies.stats import MARGIN, Difference, apart, over_images, over_seeds, score, spread_of, verdict

FIGURES = st.floats(-100, 100).map(lambda value: round(value, 2))
COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200)).filter(sum)


@given(st.lists(FIGURES, min_size=2, max_size=8))
def test_spread_is_that_of_the_standard_library(values):
    spread = spread_of(values)
    assert spread.mean == pytest.approx(statistics.mean(values), abs=1e-9)
    assert spread.sd == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert spread.n == len(values)


def test_the_smallest_values_have_a_spread_too():
    small, large = ([1.0 * size, 2.0 * size, 4.0 * size] for size in (1e-250, 1.0))
    assert spread_of(small).sd == pytest.approx(1e-250 * spread_of(large).sd, rel=1e-12, abs=0)
    assert spread_of([0.0, 0.0]).sd == 0


def test_one_seed_has_no_spread():
    spread, difference = spread_of([3.0]), over_seeds([3.0])
    assert (spread.mean, spread.n) == (3.0, 1)
    assert math.isnan(spread.sd)
    assert (difference.low, difference.high) == (-math.inf, math.inf)
    assert math.isnan(difference.p)


@given(st.lists(st.tuples(FIGURES, FIGURES), min_size=2, max_size=8))
def test_over_seeds_is_scipys_paired_t_test(pairs):
    one, other = np.array(pairs).T
    differences = one - other
    assume(np.ptp(differences) > 1e-3)  # SciPy warns of rounding where they are all the same
    found, expected = over_seeds(differences), stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    assert found.value == pytest.approx(differences.mean())
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_differences_that_are_all_the_same():
    assert over_seeds([1.5, 1.5, 1.5]) == Difference(1.5, 1.5, 1.5, 0.0, 3)
    assert math.isnan(over_seeds([0.0, 0.0]).p)


@given(COUNTS)
def test_over_images_is_mcnemars_exact_test(counts):
    only_one, only_other, same = counts
    split = only_one + only_other
    tail = sum(math.comb(split, k) for k in range(min(only_one, only_other) + 1)) / 2**split
    assert over_images(only_one, only_other, split + same).p == pytest.approx(min(1.0, 2 * tail))


@given(COUNTS, st.floats(-0.95, 0.95))
def test_score_is_the_distance_from_the_most_likely_model_with_that_difference(counts, supposed):
    """By definition: the excess over its standard deviation at the constrained maximum of the likelihood."""
    only_one, only_other, same = counts
    n = sum(counts)

    def against(q: float) -> float:
        chances = ((only_one, q + supposed), (only_other, q), (same, 1 - 2 * q - supposed))
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in chances if count)

    bounds = max(0.0, -supposed), (1 - supposed) / 2
    q = minimize_scalar(against, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = (2 * q + supposed - supposed**2) / n
    assume(variance > 1e-6)
    expected = ((only_one - only_other) / n - supposed) / math.sqrt(variance)
    assert score(only_one, only_other, n, supposed) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@given(COUNTS)
def test_interval_over_images_holds_what_the_score_does_not_refuse(counts):
    only_one, only_other, _ = counts
    n = sum(counts)
    found, swapped = over_images(only_one, only_other, n), over_images(only_other, only_one, n)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low), abs=1e-9)
    for end, side in ((found.low, 1), (found.high, -1)):
        if abs(end) < 1 - 1e-6:
            assert side * score(only_one, only_other, n, end) == pytest.approx(stats.norm.ppf(0.975), abs=1e-5)


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_interval_of_models_that_never_differ(n):
    z = stats.norm.ppf(0.975)
    found = over_images(0, 0, n)
    assert (found.low, found.high) == pytest.approx((-(z**2) / (n + z**2), z**2 / (n + z**2)))
    assert found.p == 1


def test_interval_of_models_that_always_differ():
    found = over_images(30, 0, 30)
    assert found.value == found.high == 1
    assert 0.7 < found.low < 1


def test_interval_over_images_covers_the_truth():
    """In 95 of 100 draws or so, with 40 images, where Student's would fail."""
    draws = np.random.default_rng(0).multinomial(40, [0.15, 0.05, 0.8], size=2000)
    intervals = [over_images(one, other, 40) for one, other, _ in draws.tolist()]
    assert np.mean([each.low <= 0.1 <= each.high for each in intervals]) == pytest.approx(0.95, abs=0.015)


@given(FIGURES, FIGURES, st.floats(0.1, 9), st.floats(0.1, 9))
def test_apart_is_welchs_interval_of_many_values(one, other, first, second):
    """Of two independent means with normal intervals: 1.96 times the root of the sum of their squared errors."""
    z = stats.norm.ppf(0.975)
    found = apart((one, one - z * first, one + z * first), (other, other - z * second, other + z * second), 50)
    reach = stats.norm.interval(0.95, loc=one - other, scale=math.sqrt(first**2 + second**2))
    assert (found.low, found.high) == pytest.approx(reach, abs=1e-9)


def test_apart_of_shares_is_newcombes_interval():
    """Newcombe 1998 (Interval estimation for the difference), table II: 56/70 against 48/80, method 10."""
    found = apart((56 / 70, *wilson(56, 70)), (48 / 80, *wilson(48, 80)), 70)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize("counts", [(1, 2, 0), (-1, 0, 5), (4, 4, 7)])
def test_counts_that_are_no_part_of_the_images(counts):
    with pytest.raises(ValueError, match="of"):
        over_images(*counts)


@given(st.lists(FIGURES, min_size=2, max_size=6), st.sampled_from(["higher", "lower", "no higher", "no lower"]))
def test_verdict_is_that_of_a_t_test_against_the_bound(differences, claimed):
    assume(np.ptp(differences) > 1e-3)
    bound = {"no lower": -MARGIN, "no higher": MARGIN}.get(claimed, 0.0)
    side = 1 if claimed in ("higher", "no lower") else -1
    t, p = stats.ttest_1samp(differences, bound)
    assume(abs(p - 0.05) > 1e-6)
    expected = "undecided" if p > 0.05 else "holds" if t * side > 0 else "does not hold"
    assert verdict(over_seeds(differences), claimed) == expected


def test_verdict_of_what_is_level():
    level = Difference(0.0, -0.2, 0.2, 0.9, 1000)
    assert [verdict(level, each) for each in ("higher", "lower", "no lower", "no higher")] == [
        *("undecided", "undecided", "holds", "holds")
    ]
    assert verdict(level, "no lower", 0.1) == "undecided"
    assert verdict(Difference(50.0, -math.inf, math.inf, math.nan, 1), "higher") == "undecided"
