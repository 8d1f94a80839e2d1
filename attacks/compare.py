"""Compares two runs image by image: ``python -m attacks.compare A.parquet B.parquet``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from rich import get_console
from rich.table import Table
from scipy.stats import binomtest

from attacks.results import THREATS

PREFIX = "rank/"


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images, clean or under one attack.

    Attributes:
        name: the attack, or ``clean``.
        n: images that both runs attacked.
        first: share of images on which the first model is right.
        second: share on which the second is.
        only_first: images on which only the first is right.
        only_second: images on which only the second is.
        p: probability of a split as uneven as this if neither were better: McNemar's exact test, two-sided.
    """

    name: str
    n: int
    first: float
    second: float
    only_first: int
    only_second: int
    p: float


def compare(first: Path, second: Path) -> list[Comparison]:
    """Compares what became of the images of two suites, for every attack that both of them ran.

    Args:
        first: ``outcomes/*.parquet`` of a run.
        second: that of another, on the same test set.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file that holds no outcomes, runs without a common image, or labels that differ.
    """
    one, other = _read(first), _read(second)
    index, rows, others = np.intersect1d(one["index"], other["index"], return_indices=True)
    if not len(index):
        raise ValueError(f"{first} and {second} have no image in common.")
    if (one["label"].to_numpy()[rows] != other["label"].to_numpy()[others]).any():
        raise ValueError(f"{first} and {second} are of different test sets: the same image has two labels.")
    found = []
    for column in one.column_names:
        if column.startswith(PREFIX) and column in other.column_names:
            a, b = one[column].to_numpy()[rows] == 0, other[column].to_numpy()[others] == 0
            only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
            p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
            name = column.removeprefix(PREFIX)
            threats = [json.loads((t.schema.metadata or {}).get(THREATS, b"{}")).get(name, "") for t in (one, other)]
            if threats[0] != threats[1]:
                name += f" ({threats[0]} beside {threats[1]})"
            found.append(Comparison(name, len(index), float(a.mean()), float(b.mean()), only_a, only_b, float(p)))
    return found


def _read(path: Path) -> pa.Table:
    """A suite's outcomes."""
    if not path.is_file():
        raise FileNotFoundError(f"There are no outcomes at {path}: give a file of a run's outcomes folder.")
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as Parquet: give a file of a run's outcomes folder.") from error
    if not {"index", "label", f"{PREFIX}clean"} <= set(table.column_names):
        raise ValueError(f"{path} holds no outcomes of an attack suite.")
    return table


def main(args: Sequence[str]) -> None:
    """Prints the comparison of two files as a table."""
    if len(args) != 2:
        raise ValueError("Give two files: python -m attacks.compare A/outcomes/NAME.parquet B/outcomes/NAME.parquet")
    first, second = map(Path, args)
    found = compare(first, second)
    table = Table(title=f"A: {first}\nB: {second}\n{found[0].n} images in common", title_justify="left")
    for column in ("accuracy, %", "A", "B", "B - A", "only A right", "only B right", "p (McNemar)"):
        table.add_column(column, justify="left" if column.startswith("acc") else "right")
    for row in found:
        share = [f"{100 * value:.1f}" for value in (row.first, row.second)]
        difference = f"{100 * (row.second - row.first):+.1f}"
        table.add_row(row.name, *share, difference, str(row.only_first), str(row.only_second), f"{row.p:.2g}")
    get_console().print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")
