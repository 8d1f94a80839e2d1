"""What JSMA tells over a test set: which class can be made into which other, and for how many features."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from attacks.jsma import crafted
from attacks.records import Record, mean
from attacks.results import SuiteResult

NOTE = "features"


def _noted(result: SuiteResult) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """For each attack that noted them: its name, the shares of features (n, C) and the labels of attacked images."""
    for name, outcome in result.outcomes.items():
        if NOTE in outcome.notes:
            yield name, outcome.notes[NOTE][outcome.attacked], result.label[outcome.attacked]


def matrices(result: SuiteResult) -> dict[str, np.ndarray]:
    """For each JSMA of a suite, the share of images of class s (row) that were led to class t (column), (C, C)."""
    return {
        name: crafted(torch.from_numpy(shares), torch.from_numpy(label)).success.numpy()
        for name, shares, label in _noted(result)
    }


def reached(result: SuiteResult, gammas: Mapping[str, float]) -> Iterator[Record]:
    """For each JSMA of a suite that leads to every class: its success over all pairs of image and class, and the
    robustness metric: the mean share of features that had to change, a failure counted as gamma.

    Args:
        result: the suite's.
        gammas: the largest share of features that each of these attacks may change, by its name.
    """
    for name, shares, label in _noted(result):
        if name not in gammas:
            continue
        other = np.arange(shares.shape[1]) != label[:, None]
        done = ~np.isnan(shares) & other
        changed = np.where(done, shares, gammas[name])
        seconds = result.outcomes[name].seconds
        # Images, not pairs, are the sample: the classes of one image are no independent draws.
        rate, amount = (np.where(other, values, 0).sum(1) / other.sum(1) for values in (done, changed))
        record = mean(f"{name} success over pairs", rate, "", seconds)
        yield replace(record, high=min(record.high, 1.0))
        yield mean(f"{name} share of features", amount, "of features", seconds)
