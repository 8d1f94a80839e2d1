"""How alike two attribution maps are, image by image, and how sure the mean over images is.

Every measure takes two batches of maps of one shape, (B, C, H, W) with signs, and returns float64 (B,): 1 for a map
and itself, and the same whatever positive factor either map is multiplied by. It is NaN where it says nothing, as for
an all-zero map, so such images can be counted instead of averaged in.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SHARE = 0.1  # of an image's pixels, the strongest: what the overlap looks at
WINDOW = 7  # side of SSIM's window, scikit-image's default; it leaves four places on an 8×8 map
STABILISERS = (0.01**2, 0.03**2)  # SSIM's K1² and K2² at a range of 1 (Wang et al. 2004)
DRAWS = 2000
CHUNK = 4_000_000  # numbers drawn at a time: 32 MB

Measure = Callable[[Tensor, Tensor], Tensor]


def absolute_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the absolute maps, in [0, 1] (Zou 2023, §4.2); NaN for an all-zero map.

    Two unrelated maps score far above 0, for no entry is negative: 2 / π where the entries are normal.
    """
    return _cosine(*(maps.abs() for maps in _scaled(a, b)))


def signed_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the maps as they are, in [-1, 1], about 0 for unrelated ones; NaN for an all-zero map."""
    return _cosine(*_scaled(a, b))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the maps' signed entries, in [-1, 1]; NaN for a constant map."""
    return _correlation(*_scaled(a, b))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of the maps' signed entries, in [-1, 1]; NaN for a constant map.

    Equal entries share the mean of their ranks, which matters where Grad-CAM's ReLU has left many zeros.
    """
    return _correlation(*(_ranks(maps) for maps in _scaled(a, b)))


def top_overlap(a: Tensor, b: Tensor, share: float = SHARE) -> Tensor:
    """Share of the strongest pixels of one map that are among the strongest of the other, in [0, 1].

    A pixel's strength is the sum of its channels' absolute values; the strongest are the ``share`` of all, rounded,
    one at least. Of equally strong pixels those go first that come first, row by row. Unrelated maps score ``share``.
    NaN for a map whose pixels are all equally strong.
    """
    strengths = [_strength(maps).flatten(1) for maps in _scaled(a, b)]
    count = max(1, round(share * strengths[0].shape[1]))
    first, second = (
        torch.zeros_like(strength).scatter_(1, strength.sort(dim=1, descending=True, stable=True).indices[:, :count], 1)
        for strength in strengths
    )
    return _where(_varied(*strengths), (first * second).sum(1) / count)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of the pixels' strengths, in [-1, 1] (Wang et al. 2004).

    A pixel's strength is the sum of its channels' absolute values, rescaled for every image so that the weakest pixel
    is 0 and the strongest 1. The window is scikit-image's by default, 7×7 with equal weights and sample covariances,
    at every place where it lies inside the map; on a smaller map it is the largest odd square that fits. NaN for a map
    whose pixels are all equally strong, and for maps under 3×3.
    """
    x, y = map(_strength, _scaled(a, b))
    defined = _varied(x.flatten(1), y.flatten(1))
    window = min(WINDOW, *x.shape[1:])
    window -= 1 - window % 2
    if window < 3:
        return _where(torch.zeros_like(defined), x[:, 0, 0])
    low, high = (torch.stack([x, y], 1).flatten(2).aminmax(dim=2)[side][..., None, None] for side in (0, 1))
    x, y = ((torch.stack([x, y], 1) - low) / (high - low)).unbind(1)
    ux, uy, uxx, uyy, uxy = F.avg_pool2d(torch.stack([x, y, x * x, y * y, x * y], 1), window, stride=1).unbind(1)
    sample = window**2 / (window**2 - 1)
    c1, c2 = STABILISERS
    structure = (2 * sample * (uxy - ux * uy) + c2) / (sample * (uxx - ux * ux + uyy - uy * uy) + c2)
    luminance = (2 * ux * uy + c1) / (ux * ux + uy * uy + c1)
    return _where(defined, (luminance * structure).mean((1, 2)))


MEASURES: dict[str, Measure] = {
    "absolute cosine": absolute_cosine,
    "signed cosine": signed_cosine,
    "Pearson": pearson,
    "Spearman": spearman,
    "top-10 % overlap": top_overlap,
    "SSIM": ssim,
}


def resample(values: np.ndarray, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Means over images drawn with replacement (the bootstrap, Efron 1979).

    The images are the same for every column, so differences between columns are paired; in which order they are given
    does not matter.

    Args:
        values: an image per row, (n, k); NaN where a value is not defined, which leaves the image out of that mean.
        seed: of the draws.
        draws: how often n images are drawn.

    Returns:
        (draws, k); NaN where no image of a draw is defined.
    """
    n = len(values)
    values = values[np.lexsort(values.T)]
    defined = ~np.isnan(values)
    generator, means = np.random.default_rng(seed), []
    at_a_time = max(1, CHUNK // n)
    for done in range(0, draws, at_a_time):
        rows = min(at_a_time, draws - done)
        drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        # How often each image was drawn: a mean is then a product of matrices.
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)
        with np.errstate(invalid="ignore"):
            means.append((times @ np.where(defined, values, 0)) / (times @ defined))
    return np.concatenate(means)


def bootstrap(values: np.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, float, float]:
    """Mean of the defined values and its 95 % interval: percentiles of the means of as many, drawn with replacement.

    Args:
        values: a value per image, (n,); NaN where it is not defined.
        seed: of the draws.
        draws: how many.

    Returns:
        Mean, lower and upper end; NaN where no value is defined.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    return float(values.mean()), *interval(resample(values[:, None], seed, draws)[:, 0])


def interval(means: np.ndarray) -> tuple[float, float]:
    """The percentiles 2.5 and 97.5 of the draws that are defined; NaN where none is."""
    means = means[~np.isnan(means)]
    low, high = np.percentile(means, [2.5, 97.5]) if len(means) else (np.nan, np.nan)
    return float(low), float(high)


def _scaled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches in float64, each map divided by its largest absolute entry, lest tiny entries vanish in squares."""
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"Maps are compared by (B, C, H, W) of one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")

    def scale(maps: Tensor) -> Tensor:
        maps = maps.detach().double()
        peak = maps.abs().amax((1, 2, 3), keepdim=True)
        return maps / peak.where(peak != 0, 1)

    return scale(a), scale(b)


def _strength(maps: Tensor) -> Tensor:
    return maps.abs().sum(1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    product = a.norm(dim=1) * b.norm(dim=1)
    return _where(product > 0, ((a * b).sum(1) / product).clamp(-1, 1))  # rounding may put a cosine beyond 1


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    return _where(_varied(a, b), _cosine(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)))


def _ranks(maps: Tensor) -> Tensor:
    """Ranks of each map's entries, the mean of their ranks for equal ones."""
    flat = maps.flatten(1)
    ordered, order = flat.sort(1)
    place = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
    step = ordered.diff(dim=1) != 0
    edge = torch.ones_like(place[:, :1], dtype=torch.bool)
    # In a run of equal entries everybody has the mean of the run's first and last place.
    first = place.where(torch.cat([edge, step], 1), 0).cummax(1).values
    last = place.where(torch.cat([step, edge], 1), flat.shape[1]).flip(1).cummin(1).values.flip(1)
    ranks = torch.zeros_like(flat).scatter_(1, order, (first + last).to(flat) / 2)
    return ranks.masked_fill(flat.isnan(), torch.nan)


def _varied(*maps: Tensor) -> Tensor:
    """Where no map (B, n) is constant, or has an entry that is no number."""
    return torch.stack([flat.amax(1) > flat.amin(1) for flat in maps]).all(0)


def _where(defined: Tensor, values: Tensor) -> Tensor:
    return values.where(defined, torch.nan)
