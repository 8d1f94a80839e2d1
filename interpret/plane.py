"""Pictures of what networks decide in the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from interpret.decision import colours, crossed, decision_map, hardness, mixed
from interpret.figures import SMALL, save

MARKERS = "osD^vP*X"  # a class is known by its mark too


def decision_maps(
    rows: Mapping[str, Mapping[str, nn.Module]],
    bounds: tuple[float, float],
    path: Path,
    *,
    points: Tensor | None = None,
    labels: Sequence[int] | np.ndarray | Tensor = (),
    names: Sequence[str] = (),
    eps: float | None = None,
    size: int = 300,
) -> Path:
    """Draws what networks decide in the plane, as they are used, at T = 1 (001, figures 2 and 3; 002, figure 2).

    The colour of a pixel is the mix of the classes' colours by their probabilities: with three classes red, green and
    blue are the probabilities themselves. Thin black lines are where the predicted class changes.

    Args:
        rows: networks by row and title, such as ``{"teacher": {"T = 1": network, "T = 1, dropout": other}, "student":
            {"T = 1": student}}``. Equal titles share a column.
        bounds: lowest and highest coordinate, such as the box of the dataset's facts.
        path: of the picture.
        points: training points, (n, 2) or (n, 2, 1, 1), on the networks' device. Hardness at them is written below
            each panel.
        labels: the points' classes, (n,).
        names: of the classes, for the legend.
        eps: draw the points' l-inf boxes of this radius, those that hold two classes outlined in black, thick, the
            others in white.
        size: pixels along each side of a panel.

    Raises:
        ValueError: for boxes without points, or points without as many labels.
    """
    if eps is not None and points is None:
        raise ValueError(f"Boxes of radius {eps} need points to be drawn around: give points and their labels.")
    if points is not None and len(points) != len(labels):
        raise ValueError(f"{len(points)} points came with {len(labels)} labels: give one label for each point.")
    titles = list(dict.fromkeys(title for networks in rows.values() for title in networks))
    figure = Figure(figsize=(max(3.2, 1.95 * len(titles) + 0.4), 2.25 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    pure = np.eye(1)
    for row, (side, networks) in enumerate(rows.items()):
        for column, title in enumerate(titles):
            ax = axes[row, column]
            if column == 0:
                ax.set_ylabel(side, fontsize=SMALL + 2)
            ax.set_box_aspect(1)
            if title not in networks:
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                continue
            network = networks[title]
            pure = panel(ax, network, bounds, points=points, labels=labels, eps=eps, size=size)
            ax.set_title(title, fontsize=SMALL + 1, pad=3)
            if points is not None:
                hard = hardness(network, points)
                ax.set_xlabel(
                    f"mean p {hard.mean:.3f}; p > 0.99: {100 * hard.share:.0f} %", fontsize=SMALL - 1, labelpad=1
                )
    figure.align_ylabels(axes[:, 0])
    _legend(figure, legend_handles(pure, names, points is not None, eps))
    return save(figure, path)


def panel(
    ax: Axes,
    network: nn.Module,
    bounds: tuple[float, float],
    *,
    points: Tensor | None = None,
    labels: Sequence[int] | np.ndarray | Tensor = (),
    eps: float | None = None,
    size: int = 300,
    rounded: bool = False,
) -> np.ndarray:
    """Draws what one network decides, as :func:`decision_maps` does, which says what the arguments are.

    Args:
        rounded: draw the predicted class alone, without its probability (001, figure 19).

    Returns:
        the classes' pure colours, (classes, 3).
    """
    found = decision_map(network, bounds, size)
    pure = colours(found.shape[-1])
    shown = pure[found.argmax(-1)] if rounded else mixed(found)
    ax.imshow(shown, origin="lower", extent=(*bounds, *bounds), interpolation="nearest")
    ax.set_xticks([*bounds], [f"{end:g}" for end in bounds], fontsize=SMALL - 2)
    ax.set_yticks([*bounds], [f"{end:g}" for end in bounds], fontsize=SMALL - 2)
    ax.tick_params(length=2, pad=1)
    _borders(ax, found.argmax(-1), bounds)
    if points is not None:
        if eps is not None:
            _boxes(ax, points, eps, crossed(network, points, eps, bounds))
        _scatter(ax, points, np.asarray(labels), pure)
    return pure


def _borders(ax: Axes, predicted: np.ndarray, bounds: tuple[float, float]) -> None:
    """Lines around the regions of each predicted class."""
    low, high = bounds
    middles = low + (np.arange(len(predicted)) + 0.5) * (high - low) / len(predicted)
    found = np.unique(predicted)
    for c in found if len(found) > 1 else ():
        ax.contour(middles, middles, predicted == c, [0.5], colors="black", linewidths=0.6)


def _boxes(ax: Axes, points: Tensor, eps: float, cut: np.ndarray) -> None:
    corners = points.reshape(-1, 2).cpu().numpy() - eps
    for chosen, edge, width in ((~cut, "white", 0.4), (cut, "black", 1.0)):
        patches = [Rectangle(tuple(corner), 2 * eps, 2 * eps) for corner in corners[chosen]]
        ax.add_collection(PatchCollection(patches, facecolor="none", edgecolor=edge, linewidth=width))


def _scatter(ax: Axes, points: Tensor, labels: np.ndarray, pure: np.ndarray) -> None:
    flat = points.reshape(-1, 2).cpu().numpy()
    size = 7 if len(flat) < 400 else 4
    for c in np.unique(labels):
        style: dict[str, Any] = {"color": 0.6 * pure[c], "edgecolors": "white", "linewidths": 0.25}
        x, y = flat[labels == c].T
        ax.scatter(x, y, size, marker=MARKERS[c % len(MARKERS)], **style)


def legend_handles(pure: np.ndarray, names: Sequence[str], dots: bool, eps: float | None) -> list[Line2D | Rectangle]:
    """What a legend says of the classes' colours, of their marks where points are drawn, and of boxes."""
    handles: list[Line2D | Rectangle] = []
    for c, colour in enumerate(pure):
        mark: dict[str, Any] = {"marker": MARKERS[c % len(MARKERS)]} if dots else {}
        style: dict[str, Any] = {"markerfacecolor": 0.6 * colour, "markeredgecolor": "white", "markersize": 5}
        name = names[c] if names else f"class {c}"
        handles.append(Line2D([], [], color=colour, linewidth=6, label=name, **mark, **style))
    if eps is not None:
        name = f"box ±{eps:g}, two classes"
        handles.append(Rectangle((0, 0), 1, 1, facecolor="none", edgecolor="black", label=name))
    return handles


def _legend(figure: Figure, handles: Sequence[Line2D | Rectangle]) -> None:
    width, height = figure.get_size_inches()
    columns = max(
        1, min(len(handles), int(width / (0.65 + 0.065 * max(len(str(each.get_label())) for each in handles))))
    )
    figure.set_size_inches(width, height + 0.1 + 0.17 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False)
