"""Charts of agreement, adherence and sensitivity; each function draws one file and returns its path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from interpret.calibration import BINS, Answers
from interpret.decision import PALETTE
from interpret.figures import SMALL, literal, save
from interpret.sensitivity import NAMES, shares

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
NUMBERED = 8  # layers across, up to which a heat map writes its numbers


def violins(
    values: Mapping[str, np.ndarray],
    floors: Mapping[str, Mapping[str, float]],
    path: Path,
    measure: str = "adherence",
) -> Path:
    """Draws how a measure is spread over the images, with the levels that mere chance reaches.

    Args:
        values: per-image values (n,) of each method; NaN where the measure is undefined, which is counted.
        floors: for each method the means of its controls, by the control's name.
        path: of the picture.
        measure: what the values are.
    """
    figure = Figure(figsize=(max(4.2, 1.5 + 1.35 * len(values)), 3.8), layout="constrained")
    ax = figure.subplots()
    names = list(dict.fromkeys(name for levels in floors.values() for name in levels))
    ink = {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}
    labels = []
    for place, (method, found) in enumerate(values.items()):
        defined = found[~np.isnan(found)]
        labels.append(f"{method}\nn = {len(defined)}" + (f" of {len(found)}" if len(defined) < len(found) else ""))
        if len(defined):
            drawn: dict[str, Any] = ax.violinplot(defined, [place], widths=0.8, showextrema=False)
            drawn["bodies"][0].set(facecolor="#BBBBBB", edgecolor="#666666", alpha=1, linewidth=0.8)
            ax.plot(place, defined.mean(), "o", color="black", markersize=4, zorder=4)
        for name, level in floors.get(method, {}).items():
            style = DASHES[names.index(name) % len(DASHES)]
            ax.plot([place - 0.45, place + 0.45], [level, level], style, color=ink[name], linewidth=1.6, zorder=3)
    handles = [Line2D([], [], marker="o", color="black", linestyle="", markersize=4, label="mean")]
    handles += [
        Line2D(
            [], [], color=ink[name], linestyle=DASHES[n % len(DASHES)], linewidth=1.6, label=f"control: {literal(name)}"
        )
        for n, name in enumerate(names)
    ]
    ax.set_xticks(range(len(labels)), labels, fontsize=SMALL)
    reached = [*values.values(), *(np.array(list(levels.values())) for levels in floors.values())]
    lowest = min((float(np.nanmin(found)) for found in reached if not np.isnan(found).all()), default=0.0)
    ax.set(ylim=(min(0.0, 1.05 * lowest), 1.02), ylabel=measure, xlim=(-0.6, len(labels) - 0.4))
    if lowest < 0:
        ax.axhline(0, color="grey", linewidth=0.6, zorder=0)
    _clean(ax)
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=SMALL, frameon=False)
    return save(figure, path)


def reliability_diagrams(answers: Mapping[str, Answers], path: Path) -> Path:
    """Draws accuracy against mean confidence of each network, above how many images there are to it.

    Args:
        answers: what :func:`interpret.calibration.answers` says, by what the network is called.
        path: of the picture.
    """
    figure = Figure(figsize=(3.3 * len(answers), 4.4), layout="constrained")
    axes = figure.subplots(2, len(answers), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    for column, (role, said) in enumerate(answers.items()):
        _reliability(axes[0, column], axes[1, column], said)
        ece, nll, *_ = said.records(role, 0.0)
        figures = f"ECE {ece.value:.3f} [{ece.low:.3f}, {ece.high:.3f}], NLL {nll.value:.3g}"
        axes[0, column].set_title(f"{role} (n = {ece.n})\n{figures}", fontsize=SMALL + 1)
    axes[0, 0].set_ylabel("accuracy", fontsize=SMALL + 1)
    axes[1, 0].set_ylabel("images, %", fontsize=SMALL + 1)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return save(figure, path)


def _reliability(above: Axes, below: Axes, answers: Answers) -> None:
    bins = answers.reliability()
    filled = bins.count > 0
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    errors = np.stack([accuracy - bins.low[filled], bins.high[filled] - accuracy])
    above.plot([0, 1], [0, 1], "--", color="grey", linewidth=0.8, label="calibrated")
    style: dict[str, Any] = {"fmt": "o", "color": PALETTE[1], "markersize": 4, "elinewidth": 1, "capsize": 2}
    above.errorbar(confidence, accuracy, errors, label="a bin, 95 % interval", clip_on=False, **style)
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    below.bar(bins.edges[:-1], 100 * bins.count / bins.count.sum(), 0.9 / BINS, align="edge", color="#999999")
    below.set(ylim=(0, 100), xticks=np.arange(0, 1.1, 0.2), xticklabels=["0", "0.2", "0.4", "0.6", "0.8", "1"])
    below.set_xlabel("confidence", fontsize=SMALL + 1)
    _clean(above, below)


def sensitivity_histogram(amplitudes: Mapping[str, np.ndarray], path: Path, of: str = "probabilities") -> Path:
    """Draws the share of images in each of the paper's bins of gradient amplitude (000, figure 8).

    Args:
        amplitudes: (n,) of each network or temperature, by what it is called, in the order of the legend.
        path: of the picture.
        of: what was differentiated.
    """
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    ax = figure.subplots()
    width = 0.84 / len(amplitudes)
    ramp = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(amplitudes)))
    for number, (name, values) in enumerate(amplitudes.items()):
        places = np.arange(len(NAMES)) + (number - (len(amplitudes) - 1) / 2) * width
        ax.bar(places, 100 * shares(values), width, color=ramp[number], label=f"{name} (n = {len(values)})")
    ax.set_xticks(range(len(NAMES)), [bin_label(name) for name in NAMES], fontsize=SMALL - 1)
    for edge in range(1, len(NAMES)):
        ax.axvline(edge - 0.5, color="lightgrey", linewidth=0.6, zorder=0)
    ax.set(xlabel=f"mean absolute entry of an image's Jacobian of the {of}", ylabel="share of the images, %")
    ax.set(ylim=(0, 100), xlim=(-0.5, len(NAMES) - 0.5))
    _clean(ax)
    columns = max(1, min(len(amplitudes), 90 // (14 + max(map(len, amplitudes)))))
    figure.legend(loc="outside upper center", ncols=columns, fontsize=SMALL, frameon=False)
    return save(figure, path)


def bin_label(name: str) -> str:
    """The name of a bin with its powers of ten raised, on two lines where it has two ends."""
    ends = [part.replace("1e", "$10^{") + "}$" if "1e" in part else part for part in name.split("..")]
    return " –\n".join(ends)


def layer_heat_maps(maps: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> Path:
    """Draws the mean absolute gradient of each layer (column) of each stage (row), a panel for each network.

    All panels share one logarithmic scale; a gradient of exactly 0 is left white and says so.

    Args:
        maps: what :func:`interpret.sensitivity.heat_map` gives, by what the network is called.
        path: of the picture.
    """
    across = max(len(layers) for stages in maps.values() for layers in stages.values())
    down = max(map(len, maps.values()))
    norm = gradient_scale(maps)
    cell = 0.55 if across <= NUMBERED else 0.32
    size = (1.0 + (0.9 + cell * across) * len(maps), 1.1 + 0.38 * down)
    figure = Figure(figsize=(max(size[0], 4.0), max(size[1], 2.2)), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for ax, (title, stages) in zip(axes, maps.items(), strict=True):
        shown = layer_panel(ax, stages, norm, across <= NUMBERED)
        ax.set_title(title, fontsize=SMALL + 1)
        ax.set_xlabel("layer of the stage", fontsize=SMALL)
    bar = figure.colorbar(shown, ax=axes, aspect=12)
    bar.set_label("mean |dL/dW|", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)
    return save(figure, path)


def gradient_scale(maps: Mapping[str, Mapping[str, Mapping[str, float]]]) -> LogNorm:
    """A logarithmic scale for all panels of :func:`layer_heat_maps`."""
    values = [v for stages in maps.values() for layers in stages.values() for v in layers.values() if v > 0]
    low, high = min(values, default=1e-3), max(values, default=1.0)
    return LogNorm(low, high) if low < high else LogNorm(low / 10, high * 10)


def layer_panel(ax: Axes, stages: Mapping[str, Mapping[str, float]], norm: LogNorm, numbered: bool) -> AxesImage:
    """One network's panel of :func:`layer_heat_maps`, without title; with its numbers where that is asked for."""
    grid = np.full((len(stages), max(map(len, stages.values()))), np.nan)
    for row, layers in enumerate(stages.values()):
        grid[row, : len(layers)] = list(layers.values())
    shown = ax.imshow(np.where(grid > 0, grid, np.nan), cmap="viridis", norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if numbered and not np.isnan(value):
            pale = value == 0 or norm(value) > 0.6
            text = f"{value:.0e}".replace("e-0", "e-") if value else "0"
            ax.text(column, row, text, ha="center", va="center", fontsize=SMALL - 1, color="black" if pale else "white")
    ax.set_yticks(range(len(stages)), list(stages), fontsize=SMALL)
    step = max(1, grid.shape[1] // 8)
    ax.set_xticks(range(0, grid.shape[1], step), [str(n) for n in range(1, grid.shape[1] + 1, step)], fontsize=SMALL)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return shown


def _clean(*axes: Axes) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)
