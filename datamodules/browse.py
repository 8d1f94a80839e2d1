"""Looks at a dataset: ``python -m datamodules.browse --data configs/data/tsrd.yaml --out FOLDER``."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure
from rich import get_console
from rich.table import Table
from torch import Tensor

from datamodules.base import Images, Split
from interpret.decision import PALETTE
from interpret.figures import SMALL, save
from networks.base import Facts

SPLITS: tuple[Split, ...] = get_args(Split)
ACROSS = 10  # images in a row of the sheet
SHEET = 100  # images on the sheet, where there are fewer classes
ABSENT = "firebrick"


def labels(data: Images, split: Split) -> Tensor:
    """The labels of a split's images in the order of :meth:`Images.split_index`, int64 (N,)."""
    return torch.cat([data.batch(split, part).y for part in data.split_index(split).split(1024)])


def class_counts(found: dict[Split, Tensor], classes: int) -> np.ndarray:
    """How many images of each class each split holds, int64 (splits, classes), from the splits' labels."""
    return np.stack([torch.bincount(of_split, minlength=classes).numpy() for of_split in found.values()])


def counts_table(counts: np.ndarray, title: str) -> Table:
    """A row per split: its images, the classes that it holds, and how many images the rarest and commonest of these."""
    table = Table(title=title, title_justify="left")
    for column in ("split", "images", "classes", "fewest", "most"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, of_split in zip(SPLITS, counts, strict=True):
        held = of_split[of_split > 0]
        ends = (f"{held.min()}", f"{held.max()}") if len(held) else ("–", "–")
        table.add_row(split, f"{of_split.sum()}", f"{len(held)} of {len(of_split)}", *ends)
    return table


def class_chart(counts: np.ndarray, facts: Facts, path: Path) -> Path:
    """Draws how many images of each class (row) each split (panel) holds; a class that a split lacks is red.

    Args:
        counts: what :func:`class_counts` gives.
        facts: the dataset's.
        path: of the picture.
    """
    names, places = _names(facts), np.arange(facts.classes)
    width = 4.8 + 0.055 * max(map(len, names))
    figure = Figure(figsize=(width, 0.9 + 0.155 * facts.classes), layout="constrained")
    for ax, split, of_split in zip(figure.subplots(1, len(SPLITS), sharey=True), SPLITS, counts, strict=True):
        bars = ax.barh(places, of_split, 0.75, color=PALETTE[1])
        for text, count in zip(ax.bar_label(bars, fmt="%d", padding=2, fontsize=SMALL - 1), of_split, strict=True):
            text.set(color="black" if count else ABSENT)
        most = max(int(of_split.max()), 1)
        ax.set_title(f"{split}\n{of_split.sum():,} images", fontsize=SMALL + 1)
        ax.set(xlim=(0, 1.3 * most), ylim=(facts.classes - 0.4, -0.6), xticks=[])
        ax.set_yticks(places, names, fontsize=SMALL - 1)
        ax.tick_params(length=0)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    return save(figure, path)


def sample_sheet(data: Images, of_split: Tensor, path: Path) -> Path | None:
    """Draws training images of every class, not augmented, as many of each as make about a hundred.

    Args:
        data: the dataset, loaded.
        of_split: the training images' labels, as :func:`labels` gives them.
        path: of the picture.

    Returns:
        The file's path; None for points in the plane, which are no pictures.
    """
    facts = data.facts
    if facts.size == 1 or facts.channels not in (1, 3):
        return None
    each = max(1, SHEET // facts.classes)
    order = torch.randperm(len(of_split), generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([order[of_split[order] == label][:each] for label in range(facts.classes)])
    batch = data.batch("train", data.split_index("train")[chosen])
    names = [textwrap.fill(name, 15) for name in _names(facts)]
    title = 0.06 + 0.11 * (1 + max(name.count("\n") for name in names))  # inches above an image of one inch
    down = -(-len(chosen) // ACROSS)
    figure = Figure(figsize=(1.08 * ACROSS, (1 + title) * down))
    # Not a constrained layout, which takes seconds for a hundred axes.
    figure.subplots_adjust(0.005, 0, 0.995, 1 - title / ((1 + title) * down), wspace=0.06, hspace=title)
    for ax in figure.subplots(down, ACROSS, squeeze=False).flat:
        ax.set_axis_off()
    for ax, image, label in zip(figure.axes, batch.x.numpy(), batch.y.tolist(), strict=False):
        ax.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
        ax.set_title(names[label], fontsize=SMALL - 1, pad=2)
    return save(figure, path)


def browse(data: Images, out: Path) -> list[Path]:
    """Prints what a dataset holds and draws ``classes.png`` and ``samples.png`` in a folder; returns what it drew."""
    data.prepare_data()
    data.setup()
    found = {split: labels(data, split) for split in SPLITS}
    counts = class_counts(found, data.facts.classes)
    get_console().print(counts_table(counts, f"{type(data).__name__}: images of each split"))
    charts = (
        class_chart(counts, data.facts, out / "classes.png"),
        sample_sheet(data, found["train"], out / "samples.png"),
    )
    return [path for path in charts if path is not None]


def _names(facts: Facts) -> list[str]:
    return list(facts.names) or [str(label) for label in range(facts.classes)]


def main(args: Sequence[str] | None = None) -> None:
    """Browses the dataset that the command line names, as ``main.py`` reads it."""
    parser = ArgumentParser(prog="python -m datamodules.browse", description="Draws what a dataset holds.")
    parser.add_subclass_arguments(Images, "data", required=True)
    parser.add_argument("--out", type=Path, required=True, help="Folder for the pictures.")
    given = parser.instantiate(parser.parse_args(args))
    for path in browse(given.data, given.out):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
