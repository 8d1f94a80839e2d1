"""Pictures of what an attack did: clean images, adversarial ones and their difference."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from attacks.suite import SuiteResult
from networks import Facts


def example_grid(result: SuiteResult, facts: Facts, path: Path) -> Path | None:
    """Draws a few images: a row of clean ones, then for each attack the adversarial ones and the difference.

    Differences are scaled so that a change by the radius moves mid-grey half-way to black or white; titles give the
    predicted class, red where it is wrong.

    Returns:
        The file's path; None for points in the plane, which are no pictures, or where no attack was run.
    """
    if facts.size == 1 or facts.channels not in (1, 3) or not result.examples:
        return None
    attacks = list(result.examples)
    count = len(result.shown)
    rows = np.searchsorted(result.index, result.shown)
    low, high = facts.box
    figure = Figure(figsize=(1.1 * count + 0.9, 1.3 * (2 * len(attacks) + 1)), layout="constrained")
    axes = figure.subplots(2 * len(attacks) + 1, count, squeeze=False)

    def draw(row: int, images: np.ndarray, label: str, name: str | None) -> None:
        for column in range(count):
            ax = axes[row, column]
            ax.imshow(images[column].transpose(1, 2, 0).clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            if name is not None:
                predicted, true = int(result.predictions[name][rows[column]]), int(result.label[rows[column]])
                shown = facts.names[predicted] if facts.names else str(predicted)
                ax.set_title(shown, fontsize=8, color="black" if predicted == true else "firebrick", pad=2)
        axes[row, 0].set_ylabel(label, fontsize=8)

    clean = result.examples[attacks[0]][0].numpy()
    draw(0, (clean - low) / (high - low), "clean", "clean")
    for number, name in enumerate(attacks):
        x, x_adv = (part.numpy() for part in result.examples[name])
        threat = result.threats[name]
        # An l2 radius is shared among the pixels, so the largest change there is the scale.
        reach = float(threat.eps) if threat.norm == "linf" else float(np.abs(x_adv - x).max())
        draw(2 * number + 1, (x_adv - low) / (high - low), name, name)
        draw(2 * number + 2, 0.5 + (x_adv - x) / (4 * reach if reach else 1), "difference", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
