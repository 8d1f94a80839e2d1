"""How sure a network is of itself, and how right it is to be: calibration, and what is needed to tell it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from attacks.crafting import crafting
from attacks.records import Record, mean, share, wilson

HARD = 0.99  # a top probability above this is hard
BINS = 15  # of the calibration error and of its diagram
EDGES = np.linspace(0, 1, BINS + 1)

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Reliability:
    """Accuracy against confidence in bins of equal width; a bin holds its lower edge, the last one 1 too.

    Attributes:
        edges: of the bins, (BINS + 1,).
        count: images in each bin, (BINS,).
        confidence: their mean confidence; NaN in an empty bin.
        accuracy: the share of them that is classified correctly; NaN in an empty bin.
        low: lower ends of the accuracies' 95 % intervals (Wilson); NaN in an empty bin.
        high: upper ends.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What one network says of every image, at T = 1.

    Attributes:
        prediction: the class of the highest probability, (n,).
        correct: whether it is the label, bool (n,).
        confidence: its probability, float64 (n,).
        nll: negative log-likelihood of the label, in nats, float64 (n,).
    """

    prediction: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, y: Tensor) -> Self:
        """What logits (n, classes), in float64, say of images with labels y, (n,)."""
        confidence, prediction = logits.softmax(1).max(1)
        nll = F.cross_entropy(logits, y, reduction="none")
        found = (prediction, prediction == y, confidence, nll)
        return cls(*(values.cpu().numpy() for values in found))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Of all images, from those of their batches."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    @property
    def ece(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean distance of accuracy from confidence over the bins."""
        confidence, correct = torch.from_numpy(_inside(self.confidence)), torch.from_numpy(self.correct)
        return float(binary_calibration_error(confidence, correct.long(), n_bins=BINS))

    def reliability(self) -> Reliability:
        """The bins of the calibration error, for a diagram."""
        place = _place(self.confidence)
        count = np.bincount(place, minlength=BINS)
        right = np.bincount(place, self.correct, BINS)
        filled = np.where(count > 0, count, np.nan)
        ends = [wilson(int(k), int(n)) if n else (np.nan, np.nan) for k, n in zip(right, count, strict=True)]
        confidence = np.bincount(place, self.confidence, BINS) / filled
        return Reliability(EDGES, count, confidence, right / filled, *np.array(ends).T)

    def records(self, model: str, seconds: float) -> list[Record]:
        """ECE, NLL and how hard the decisions are, with 95 % intervals.

        The calibration error is the mean over images of ``±(confidence - correct)``, with the sign of the image's
        bin; the interval is Student's of that mean, which leaves out the error's upward bias in small samples.
        """
        bins = self.reliability()
        gaps = np.sign(bins.confidence - bins.accuracy)[_place(self.confidence)] * (self.confidence - self.correct)
        ece = mean("ECE", gaps, "probability", seconds)
        ece = replace(ece, value=self.ece, low=min(ece.low, self.ece), high=max(ece.high, self.ece))  # but for rounding
        found = [ece, mean("NLL", self.nll, "nats", seconds), *hardness_records(self.confidence, seconds)]
        return [replace(record, model=model) for record in found]


def hardness_records(top: np.ndarray, seconds: float) -> tuple[Record, Record]:
    """How hard decisions are (001, §5.1.1): the mean top probability, and the share of images where it exceeds 0.99.

    Args:
        top: the largest probability of each image, (n,).
        seconds: what they took.
    """
    average = mean("mean top probability", top, "probability", seconds)
    average = replace(average, high=min(average.high, 1.0))
    return average, share(f"share of p > {HARD}", int((top > HARD).sum()), len(top), seconds)


def _inside(confidence: np.ndarray) -> np.ndarray:
    """Confidences below 1: torchmetrics has a bin of its own for exactly 1, where hardened networks have most."""
    return np.minimum(confidence, np.nextafter(1.0, 0.0))


def _place(confidence: np.ndarray) -> np.ndarray:
    """The bin of every confidence."""
    return np.searchsorted(EDGES, _inside(confidence), side="right") - 1


@torch.no_grad()
def answers(model: nn.Module, batches: Iterable[Batch]) -> Answers:
    """What a network says of every image, at T = 1; the network is left as it was.

    Args:
        model: maps images (B, C, H, W) to logits (B, classes).
        batches: (images, labels (B,), indices), on the model's device.

    Raises:
        ValueError: for no images, logits that are not finite, or labels that there is no class for.
    """
    with crafting(model):
        parts = [Answers.of(checked(model(x).double(), y, "network"), y) for x, y, _ in batches]
    if not parts:
        raise ValueError("Calibration was asked for on no images: give at least one batch.")
    return Answers.joined(parts)


def checked(logits: Tensor, y: Tensor, role: str) -> Tensor:
    """The logits (B, classes); ValueError where no probability can be told from them, or none for a label."""
    if not bool(logits.isfinite().all()):
        raise ValueError(f"The {role}'s logits are not finite: no probability can be told from them.")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise ValueError(f"Labels go from {int(y.min())} to {int(y.max())}, the {role} has {logits.shape[1]} classes.")
    return logits
