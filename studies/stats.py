"""What a few seeds, or the same images under two models, can tell: means, intervals, paired tests, verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtr, stdtrit
from scipy.stats import binomtest

MARGIN = 0.5  # percentage points by which "no lower" and "no higher" may be off
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
# What is claimed of a difference: on which side of a bound it lies, and the bound as a multiple of the margin.
SIDES = {"higher": (1, 0), "no lower": (1, -1), "no higher": (-1, 1), "lower": (-1, 0)}

Interval = tuple[float, float, float]  # a figure and the ends of its 95 % interval


@dataclass(frozen=True)
class Spread:
    """The mean of a few seeds.

    Attributes:
        mean: over the seeds.
        sd: standard deviation, with n - 1 in the denominator; NaN for one seed.
        n: number of seeds.
    """

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Difference:
    """By how much one figure is above another.

    Attributes:
        value: one minus the other.
        low: lower end of the 95 % interval; minus infinity where nothing is known of it.
        high: upper end.
        p: probability of a difference as large as this, either way, if there were none; NaN where it is not known.
        n: number of seeds, or of images.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    n, largest = len(values), max(map(abs, values)) or 1.0
    # Gradients of hard networks are so small that their squares are 0.
    sd = largest * float(np.std(np.divide(values, largest), ddof=1)) if n > 1 else math.nan
    return Spread(float(np.mean(values)), sd, n)


def over_seeds(differences: Sequence[float]) -> Difference:
    """Student's t-test of differences that were taken seed by seed, two-sided, and its 95 % interval.

    Of one seed the interval is infinite. Where all differences are the same, p is 0, and NaN if they are all 0.
    """
    spread = spread_of(differences)
    n, value, error = spread.n, spread.mean, spread.sd / math.sqrt(spread.n)
    if n < 2:
        return Difference(value, -math.inf, math.inf, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * error
    t = abs(value) / error if error else math.inf if value else math.nan
    return Difference(value, value - half, value + half, float(2 * stdtr(n - 1, -t)), n)


def over_images(only_one: int, only_other: int, n: int) -> Difference:
    """How much larger the share of images is on which one model is right than that of another, on the same images.

    The interval is Tango's score interval for paired shares (Tango 1998), which does not collapse where the models
    agree on every image; p is McNemar's exact test.

    Args:
        only_one: images on which only the one is right.
        only_other: images on which only the other is.
        n: all images, at least 1.

    Raises:
        ValueError: for counts that are no part of n images.
    """
    if n < 1 or min(only_one, only_other) < 0 or only_one + only_other > n:
        raise ValueError(f"Of n >= 1 images some are right in one model alone, got {only_one} and {only_other} of {n}.")
    value = (only_one - only_other) / n
    z = float(ndtri(0.975))
    split = only_one + only_other
    ends = []
    for side in (-1, 1):
        # The score falls with the difference that is supposed, without bound towards -1 and 1.
        last = side * (1 - 1e-12)
        inside = side * value < 1 - 1e-9 and abs(score(only_one, only_other, n, last)) > z
        ends.append(
            float(brentq(lambda d, s=side: score(only_one, only_other, n, d) + s * z, value, last)) if inside else side
        )
    p = float(binomtest(only_one, split).pvalue) if split else 1.0
    return Difference(value, float(ends[0]), float(ends[1]), p, n)


def apart(one: Interval, other: Interval, n: int) -> Difference:
    """The difference of two figures of which only the intervals are known, taken as independent.

    Each end lies as far from the difference as the two nearest ends together, in quadrature (Zou & Donner 2008; of
    Wilson's intervals Newcombe's). Figures of the same images go up and down together: theirs is rather too wide.

    Args:
        one: a figure, and the ends of its 95 % interval.
        other: likewise.
        n: number of images.
    """
    value = one[0] - other[0]
    low = value - math.hypot(one[0] - one[1], other[2] - other[0])
    high = value + math.hypot(one[2] - one[0], other[0] - other[1])
    return Difference(value, low, high, math.nan, n)


def score(only_one: int, only_other: int, n: int, supposed: float) -> float:
    """Tango's statistic, standard normal where the true difference is the supposed one in (-1, 1)."""
    excess = only_one - only_other - n * supposed
    b = (2 * n - only_one + only_other) * supposed - only_one - only_other
    c = -only_other * supposed * (1 - supposed)
    # Most likely probability that only the other is right, given the difference.
    q = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * q + supposed * (1 - supposed))
    if variance > 0:
        return excess / math.sqrt(variance)
    return math.copysign(math.inf, excess) if excess else 0.0


def verdict(difference: Difference, claimed: str, margin: float = MARGIN) -> str:
    """Whether the 95 % interval of a difference lies on the claimed side of the bound.

    Args:
        difference: one minus the other.
        claimed: ``higher``, ``lower``, ``no lower`` or ``no higher``.
        margin: by how much the last two may be off, in the difference's unit.

    Returns:
        :data:`HOLDS`, :data:`FAILS` or :data:`UNDECIDED`.
    """
    side, times = SIDES[claimed]
    bound = times * margin
    nearest, farthest = sorted((side * (difference.low - bound), side * (difference.high - bound)))
    return HOLDS if nearest > 0 else FAILS if farthest < 0 else UNDECIDED
