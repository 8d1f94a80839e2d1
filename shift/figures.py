"""Pictures of how networks fare on corrupted images; each function draws one file and returns its path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from attacks.records import Record
from interpret.decision import PALETTE
from interpret.figures import DIVERGING, SMALL, save
from shift.corrupted import Corrupted


def accuracy_map(found: Corrupted, path: Path, title: str) -> Path:
    """Draws the accuracy of each corruption (row) at each severity (column), beside that of clean images.

    Args:
        found: what the network says.
        path: of the picture.
        title: the network.
    """
    clean = np.full((len(found.kinds), 1), found.clean.correct.mean())
    values = 100 * np.concatenate([clean, found.accuracy()], 1)
    return _heat_map(found, values, path, title, "accuracy, %", "viridis", Normalize(0, 100), "{:.0f}")


def difference_map(student: Corrupted, teacher: Corrupted, path: Path) -> Path:
    """Draws the student's accuracy minus the teacher's in every cell, on a scale that is symmetric about 0.

    Args:
        student: what it says.
        teacher: what its teacher says of the same images.
        path: of the picture.
    """
    clean = np.full((len(student.kinds), 1), student.clean.correct.mean() - teacher.clean.correct.mean())
    values = 100 * np.concatenate([clean, student.accuracy() - teacher.accuracy()], 1)
    reach = float(np.abs(values).max()) or 1.0
    norm, label = Normalize(-reach, reach), "difference, percentage points"
    return _heat_map(student, values, path, "student − teacher", label, DIVERGING.reversed(), norm, "{:+.0f}")


def _heat_map(
    found: Corrupted,
    values: np.ndarray,
    path: Path,
    title: str,
    label: str,
    colours: str | Colormap,
    norm: Normalize,
    form: str,
) -> Path:
    figure = Figure(figsize=(5.2, 1.5 + 0.235 * len(values)), layout="constrained")
    ax = figure.subplots()
    shown = numbered(ax, values, colours, norm, form)
    ax.set_xticks(range(values.shape[1]), ["clean", *map(str, found.severities)], fontsize=SMALL)
    ax.set_yticks(range(len(values)), [kind.replace("_", " ") for kind in found.kinds], fontsize=SMALL)
    extras = len(found.counted) < len(found.kinds)
    ax.set_xlabel("severity" + " (below the gap: not counted in means)" * extras, fontsize=SMALL)
    ax.axvline(0.5, color="white", linewidth=3)
    if extras:
        ax.axhline(len(found.counted) - 0.5, color="white", linewidth=3)
    ax.set_title(f"{title} on {found.source} (n = {len(found.clean.index)})", fontsize=SMALL + 1)
    bar = figure.colorbar(shown, ax=ax, aspect=25)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)
    return save(figure, path)


def numbered(ax: Axes, values: np.ndarray, colours: str | Colormap, norm: Normalize, form: str) -> AxesImage:
    """Draws a matrix as a heat map with its numbers; of NaN, nothing.

    Args:
        ax: where.
        values: (rows, columns).
        colours: the colour map.
        norm: its scale.
        form: of a number, such as ``{:.0f}``.
    """
    shown = ax.imshow(values, cmap=colours, norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = shown.to_rgba(value)
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            ax.text(column, row, form.format(value), ha="center", va="center", fontsize=SMALL - 1, color=ink)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return shown


def severity_curves(found: Mapping[str, Corrupted], records: Mapping[str, Sequence[Record]], path: Path) -> Path:
    """Draws accuracy, calibration error and NLL against the severity, with their 95 % intervals.

    Args:
        found: what each network says, by its name.
        records: those of :meth:`Corrupted.records` of each.
        path: of the picture.
    """
    figure = Figure(figsize=(7.4, 2.6), layout="constrained")
    axes = figure.subplots(1, 3)
    first = next(iter(found.values()))
    severities = first.severities
    for number, network in enumerate(found):
        by_metric = {record.metric.removeprefix(f"{first.source}: "): record for record in records[network]}
        accuracy = [_ends(by_metric["clean"], 100), *(_ends(by_metric[f"severity {s}"]) for s in severities)]
        ece, nll = (
            [_ends(by_metric[f"{name} {where}"]) for where in ("clean", *(f"at severity {s}" for s in severities))]
            for name in ("ECE", "NLL")
        )
        for ax, curve in zip(axes, (accuracy, ece, nll), strict=True):
            low, value, high = np.array(curve).T
            ax.fill_between([0, *severities], low, high, color=PALETTE[number], alpha=0.2, linewidth=0)
            style = "os"[number % 2]
            ax.plot([0, *severities], value, marker=style, markersize=3, color=PALETTE[number], label=network)
    for ax, label in zip(axes, ("accuracy, %", "calibration error", "NLL, nats"), strict=True):
        ax.set_xticks([0, *severities], ["clean", *map(str, severities)])
        ax.set_xlabel("severity", fontsize=SMALL)
        ax.set_ylabel(label, fontsize=SMALL)
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)
    axes[0].set_ylim(0, 100)
    figure.suptitle(f"{first.source}, mean of {len(first.counted)} corruptions", fontsize=SMALL + 1)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return save(figure, path)


def _ends(record: Record, scale: float = 1) -> tuple[float, float, float]:
    return scale * record.low, scale * record.value, scale * record.high
