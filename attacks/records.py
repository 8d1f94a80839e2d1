"""What an evaluator says: records with their sample size and interval, and where they are kept."""

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy.special import bdtr, stdtrit


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share of successes (Wilson 1927), 95 % by default.

    Unlike the normal approximation it stays inside [0, 1] and does not collapse at 0 or n successes.

    Raises:
        ValueError: for n < 1 or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"An interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}.")
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not put the share itself outside.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


@dataclass(frozen=True)
class Record:
    """One measured quantity.

    Attributes:
        metric: what was measured, such as ``PGD-20``.
        value: the share of images on which the model is right, in [0, 1]; where a unit is stated, a mean.
        n: number of images.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        seconds: wall-clock time of the measurement.
        threat: the threat model, empty for clean images.
        model: whose figure it is: ``student``, ``teacher``, ``network``.
        checkpoint: which weights: ``best``, ``last``, or a path.
        unit: what the value is counted in; empty for a share.
        forwards: forward passes that the measurement cost, per image that was attacked.
        backwards: backward passes, likewise.
    """

    metric: str
    value: float
    n: int
    low: float
    high: float
    seconds: float
    threat: str = ""
    model: str = ""
    checkpoint: str = ""
    unit: str = ""
    forwards: float = 0.0
    backwards: float = 0.0


def share(metric: str, successes: int, n: int, seconds: float, threat: str = "") -> Record:
    """The record of a share of images, with its Wilson interval."""
    low, high = wilson(successes, n)
    return Record(metric, successes / n, n, low, high, round(seconds, 3), threat)


def mean(metric: str, values: np.ndarray, unit: str, seconds: float) -> Record:
    """The record of a mean over images, with the 95 % interval of Student's t (the mean itself for one image).

    Lengths and shares are meant: no interval begins below 0.
    """
    average, n = float(values.mean()), len(values)
    half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return Record(metric, average, n, max(0.0, average - half), average + half, round(seconds, 3), unit=unit)


def median(metric: str, values: np.ndarray, unit: str, seconds: float) -> Record:
    """The record of a median over images, with its distribution-free 95 % interval, between two of the values in order.

    For what spreads over orders of magnitude, whose mean is that of a few images.
    """
    n = len(values)
    ends = np.searchsorted(bdtr(np.arange(n), n, 0.5), [0.025, 0.975]) - [1, 0]  # how many lie below it, binomially
    low, high = np.sort(values)[ends.clip(0, n - 1)]
    return Record(metric, float(np.median(values)), n, float(low), float(high), round(seconds, 3), unit=unit)


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """Adds records to ``results.jsonl`` in a folder and makes ``results.csv`` from all of them.

    Both appear whole or not at all, so an interrupted write loses nothing that stood there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "results.jsonl"
    # A process that was killed while it wrote has left a line without an end, which is no record.
    whole = (
        [line for line in lines.read_text().splitlines(keepends=True) if line.endswith("\n")] if lines.exists() else []
    )
    whole += [json.dumps(asdict(record)) + "\n" for record in records]
    _replace(lines, whole)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [field.name for field in fields(Record)])
    table.writeheader()
    table.writerows(map(json.loads, whole))
    _replace(folder / "results.csv", [text.getvalue()])


def _replace(path: Path, lines: Sequence[str]) -> None:
    """Puts a file in the place of another in one step."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="") as file:
        file.writelines(lines)
    os.replace(partial, path)
