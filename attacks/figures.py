"""Pictures of what an attack did: clean images, adversarial ones and their difference."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from attacks.results import CLEAN, SuiteResult
from networks import Facts

COUNT = 8  # images in a figure


def success_matrix(success: np.ndarray, facts: Facts, title: str, path: Path) -> Path:
    """Draws the share of images of each class (row) that an attack led to each other class (column).

    Args:
        success: shares (C, C); NaN where there is nothing to say, such as on the diagonal.
        facts: the dataset's, for the classes' names.
        title: the attack.
        path: of the picture.
    """
    count = len(success)
    names = list(facts.names) or [str(number) for number in range(count)]
    figure = Figure(figsize=(1.6 + 0.45 * count, 1.2 + 0.42 * count), layout="constrained")
    ax = figure.subplots()
    shown = ax.imshow(100 * success, vmin=0, vmax=100, cmap="Blues")
    for row, column in zip(*np.nonzero(~np.isnan(success)), strict=True):
        share = success[row, column]
        ink = "white" if share > 0.6 else "black"
        ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    ax.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
    ax.set_yticks(range(count), names)
    ax.set(xlabel="target class", ylabel="source class", title=title)
    figure.colorbar(shown, ax=ax, label="success, %", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def example_grid(result: SuiteResult, facts: Facts, path: Path) -> Path | None:
    """Draws a few images: a row of clean ones, then for each attack the adversarial ones and the difference.

    Differences are scaled so that a change by the radius moves mid-grey half-way to black or white; titles give the
    predicted class, red where it is wrong.

    Returns:
        The file's path; None for points in the plane, which are no pictures, or where no attack was run.
    """
    if facts.size == 1 or facts.channels not in (1, 3) or not result.radii:
        return None
    attacks = list(result.radii)
    shown = result.shown[:COUNT]
    count = len(shown)
    rows = np.searchsorted(result.index, shown)
    low, high = facts.box
    figure = Figure(figsize=(1.1 * count + 0.9, 1.3 * (2 * len(attacks) + 1)), layout="constrained")
    axes = figure.subplots(2 * len(attacks) + 1, count, squeeze=False)

    def draw(row: int, images: np.ndarray, side: str, name: str | None) -> None:
        for column in range(count):
            ax = axes[row, column]
            ax.imshow(images[column].transpose(1, 2, 0).clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            if name is not None:
                predicted, true = int(result.outcomes[name].prediction[rows[column]]), int(result.label[rows[column]])
                label = facts.names[predicted] if facts.names else str(predicted)
                ax.set_title(label, fontsize=8, color="black" if predicted == true else "firebrick", pad=2)
        axes[row, 0].set_ylabel(side, fontsize=8)

    clean = result.examples[CLEAN]
    draw(0, (clean - low) / (high - low), "clean", "clean")
    for number, name in enumerate(attacks):
        x_adv = result.examples[name][:count]
        delta = x_adv - clean[:count]
        # An l2 radius is shared among the pixels, so the largest change there is the scale.
        radius = result.radii[name]
        reach = float(np.abs(delta).max()) if radius is None else radius
        draw(2 * number + 1, (x_adv - low) / (high - low), name, name)
        draw(2 * number + 2, 0.5 + delta / (4 * reach if reach else 1), "difference", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
