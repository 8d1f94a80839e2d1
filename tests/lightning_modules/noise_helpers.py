"""What the tests of noise share: moments, labels, what a source makes of them, and a test of independence."""

import math
from itertools import pairwise

import torch
from formulas import log_p
from regime_helpers import FACTS
from scipy import stats
from torch import Tensor

from lightning_modules import InputNoise, LabelCorruption, Noise
from lightning_modules.noise import Moment

T = 3.0
C = FACTS.classes
MANY = 20_000
LIKELY = 1e-4  # what a test of a true hypothesis falls below once in 10,000 seeds


def moment(count: int = MANY, words: tuple[int, ...] = (0,), epoch: int = 0, step: int = 0) -> Moment:
    return Moment(torch.arange(count), words, epoch, step)


def labels(count: int = MANY) -> Tensor:
    return torch.arange(count) % C


def outcome(source: Noise, when: Moment) -> Tensor:
    """What a source makes of the labels, images or answers of a moment's images."""
    index = when.index
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(4096, 1, 4, 4, generator=generator)[index % 4096]
    z = torch.randn(4096, C, generator=generator)[index % 4096]
    if isinstance(source, LabelCorruption):
        return source.on_labels(index % C, C, when)
    if isinstance(source, InputNoise):
        return source.on_images(x, when)
    return source.on_answer(z, T, when)


def called(source: Noise) -> str:
    return type(source).__name__ + "".join(f"-{value}" for value in vars(source).values())


def independent(one: Tensor, other: Tensor) -> bool:
    """By a chi-square test of two yes-or-no variables."""
    table = [[int(((one == a) & (other == b)).sum()) for b in (False, True)] for a in (False, True)]
    return stats.chi2_contingency(table).pvalue > LIKELY


def swapped(z: Tensor, t: float, which: str, threshold: float) -> tuple[Tensor, float]:
    """Paper 004, A.4, sample by sample: the logits with their places exchanged.

    Also how near any difference came to the threshold, where rounding decides.
    """
    result, near = z.clone(), math.inf
    for row in result:
        p = log_p(row[None].double(), t).exp()[0].tolist()
        order = sorted(range(len(p)), key=lambda c: -p[c])
        pairs = [(order[0], order[1])] if which == "top2" else list(pairwise(order))
        for here, there in pairs:
            difference = abs(p[here] - p[there])
            near = min(near, abs(difference - threshold))
            if difference < threshold:
                p[here], p[there] = p[there], p[here]
                row[here], row[there] = float(row[there]), float(row[here])
    return result, near
