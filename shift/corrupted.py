"""Accuracy and calibration of networks on corrupted images, beside their teacher's."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import nn

from attacks.records import Record, mean, share
from attacks.results import CLEAN
from datamodules.corrupted import COUNTED
from interpret.calibration import Batch
from shift.judgement import Judgement, judgements, keep
from shift.sources import Corruptions

Cell = tuple[str, int]
UNTOUCHED: Cell = (CLEAN, 0)


@dataclass(frozen=True)
class Corrupted:
    """What one network says of the same images, clean and corrupted.

    Attributes:
        source: what the corruptions are called: ``CIFAR-10-C``, ``CIFAR-100-C`` or ``CIFAR-C-like``.
        clean: what it says of the clean images.
        cells: what it says of them under each corruption at each severity.
        seconds: of each cell, what made the images included; of the clean images at ``(clean, 0)``.
    """

    source: str
    clean: Judgement
    cells: dict[Cell, Judgement]
    seconds: dict[Cell, float]

    @property
    def kinds(self) -> list[str]:
        """The corruptions, those that are counted first."""
        return list(dict.fromkeys(kind for kind, _ in self.cells))

    @property
    def counted(self) -> list[str]:
        """Those that count towards the mean error; the others are for validation."""
        return [kind for kind in self.kinds if kind in COUNTED]

    @property
    def severities(self) -> list[int]:
        """The severities."""
        return list(dict.fromkeys(severity for _, severity in self.cells))

    def accuracy(self) -> np.ndarray:
        """Of each corruption (row) at each severity (column), in [0, 1]."""
        return np.array([[self.cells[kind, s].correct.mean() for s in self.severities] for kind in self.kinds])

    def over(self, what: str, kinds: Sequence[str], severities: Sequence[int]) -> np.ndarray:
        """The mean of a quantity over corruptions and severities, image by image, (n,)."""
        return np.mean([getattr(self.cells[kind, s], what) for kind in kinds for s in severities], axis=0)

    def errors(self) -> np.ndarray:
        """Each counted corruption's error of each image, (corruptions, n): the mean over the severities."""
        return np.stack([1 - self.over("correct", [kind], self.severities) for kind in self.counted])

    def records(self, teacher: "Corrupted | None" = None) -> Iterator[Record]:
        """Accuracy in every cell, its means, the mean error, calibration by severity, and what compares to a teacher.

        Means over cells are taken image by image first, so that their intervals (of Student) know that each image was
        looked at many times. The mean error is ``1/|C| sum_c 1/|S| sum_s E_(s,c)``, with E the share of images that
        are classified wrongly: the mCE of Hendrycks & Dietterich (2019) without its division by AlexNet's,
        as is usual for CIFAR. Calibration errors are computed cell by cell and averaged (Ovadia et al. 2019).
        """
        n = len(self.clean.index)
        yield self._named(share(CLEAN, int(self.clean.correct.sum()), n, self.seconds[UNTOUCHED]))
        for (kind, severity), said in self.cells.items():
            yield self._named(share(f"{kind} {severity}", int(said.correct.sum()), n, self.seconds[kind, severity]))
        for kind in self.counted:
            yield self._accuracy(kind, [kind], self.severities)
        spent = self._spent(self.counted, self.severities)
        error = mean(f"mean error of {len(self.counted)}", 100 * self.errors().mean(0), "%", spent)
        yield self._named(replace(error, high=min(error.high, 100.0)))
        if teacher is not None:
            yield from self._beside(teacher)
        for kind in self.kinds[len(self.counted) :]:
            yield self._accuracy(kind, [kind], self.severities)
        for severity in self.severities:
            yield self._accuracy(f"severity {severity}", self.counted, [severity])
        for what, name, unit in (("gaps", "ECE", "probability"), ("nll", "NLL", "nats")):
            yield self._named(mean(f"{name} {CLEAN}", getattr(self.clean, what), unit, self.seconds[UNTOUCHED]))
            for severity in self.severities:
                values, spent = self.over(what, self.counted, [severity]), self._spent(self.counted, [severity])
                yield self._named(mean(f"{name} at severity {severity}", values, unit, spent))

    def _beside(self, teacher: "Corrupted") -> Iterator[Record]:
        """The error relative to a teacher's on the same images.

        It is ``1/|C| sum_c (sum_s E_(s,c)) / (sum_s E^T_(s,c))``: Hendrycks & Dietterich's mCE (2019) with the
        teacher in AlexNet's place, so 1 for a network as good as its teacher. There is none where the teacher makes no
        error under a corruption. Its interval is by the delta method, over images.
        """
        own, others = self.errors(), teacher.errors()
        base = others.mean(1, keepdims=True)
        if (base > 0).all():
            ratio = own.mean(1, keepdims=True) / base
            # What each image moves the mean ratio by; these movements average to 0.
            spent = self._spent(self.counted, self.severities)
            values = (ratio + (own - ratio * others) / base).mean(0)
            yield self._named(mean("error relative to teacher", values, "ratio", spent))

    def write(self, path: Path) -> None:
        """Writes one row per image to a Parquet file, so that any two runs can be compared image by image."""
        named = {f"{kind} {severity}": said for (kind, severity), said in self.cells.items()}
        keep(path, {CLEAN: self.clean, **named})

    @classmethod
    def merge(cls, parts: Sequence["Corrupted"]) -> "Corrupted":
        """The result over shards of one test set."""
        cells = {cell: Judgement.merge([part.cells[cell] for part in parts]) for cell in parts[0].cells}
        seconds = {cell: max(part.seconds[cell] for part in parts) for cell in parts[0].seconds}
        return cls(parts[0].source, Judgement.merge([part.clean for part in parts]), cells, seconds)

    def _spent(self, kinds: Sequence[str], severities: Sequence[int]) -> float:
        return sum(self.seconds[kind, severity] for kind in kinds for severity in severities)

    def _accuracy(self, metric: str, kinds: Sequence[str], severities: Sequence[int]) -> Record:
        values = 100 * self.over("correct", kinds, severities)
        record = mean(metric, values, "%", self._spent(kinds, severities))
        return self._named(replace(record, high=min(record.high, 100.0)))

    def _named(self, record: Record) -> Record:
        return replace(record, metric=f"{self.source}: {record.metric}")


def corruption_accuracy(
    networks: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    corruptions: Corruptions,
    console: Console | None = None,
) -> dict[str, Corrupted]:
    """Judges networks on the same images under every corruption at every severity; each image is corrupted once.

    Args:
        networks: map images (B, C, H, W) in [0, 1] to logits (B, classes), by name; they are left as they were.
        batches: (clean images, labels (B,), indices (B,)), on the networks' device.
        corruptions: where the corrupted images come from.
        console: where progress is shown; None for nowhere.

    Raises:
        ValueError: for no images, images that these corruptions are not of, logits that are not finite, or labels that
            there is no class for.
    """
    kinds = corruptions.kinds(batches)
    begun = time.perf_counter()
    clean = judgements(networks, batches)
    seconds: dict[Cell, float] = {UNTOUCHED: time.perf_counter() - begun}
    cells: dict[str, dict[Cell, Judgement]] = {name: {} for name in networks}
    planned = [(kind, severity) for kind in kinds for severity in corruptions.severities]
    for kind, severity in track(planned, corruptions.name, console=console, disable=console is None):
        begun = time.perf_counter()
        shifted = ((corruptions(kind, severity, x, index), y, index) for x, y, index in batches)
        for name, said in judgements(networks, shifted).items():
            cells[name][kind, severity] = said
        seconds[kind, severity] = time.perf_counter() - begun
    return {name: Corrupted(corruptions.name, clean[name], found, seconds) for name, found in cells.items()}
