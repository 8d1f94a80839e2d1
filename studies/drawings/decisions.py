"""What networks decide in the plane."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from interpret.decision import hardness
from interpret.figures import SMALL, literal, wrapped
from interpret.plane import legend_handles, panel
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry
from studies.drawings.networks import data_of, loaded
from studies.gather import Ran, Results

ACROSS = 5  # panels side by side
SIZE = 160  # pixels along each side of a panel
SPACE = 0.08  # inches between panels
EDGE = 0.03  # inches left and right of them
LINE = 0.14  # inches of a line of text


class Plane(NamedTuple):
    """Training points (n, 2, 1, 1), their classes (n,), and how the panels are drawn."""

    points: Tensor
    labels: Tensor
    names: Sequence[str]
    box: tuple[float, float]
    shown: int
    eps: float | None
    rounded: bool


class Decided(NamedTuple):
    """A network, and the share of the training points at which its top probability exceeds 0.99."""

    network: nn.Module
    hard: float


class Row(NamedTuple):
    """Panels side by side: what stands above them all, and each one's title and run."""

    heading: str
    panels: list[tuple[str, Entry]]


def decisions(
    results: Results,
    entries: Sequence[Entry],
    *,
    columns: str | int = ACROSS,
    rounded: bool = False,
    points: int = 150,
    eps: float | None = None,
) -> list[Drawn]:
    """Class probabilities as colours, a panel for each run, of its first seed (001, figures 2, 3, 18, 19; 002, 2)."""
    if isinstance(columns, str) and not common.on_axis(results, entries, columns):
        return common.nothing(f"No run of this recipe lies on {columns}.")
    if (first := common.trained(results, entries)) is None:
        return common.nothing(common.left_out(results, entries, (), "weights"))
    data = data_of(first)
    if data.facts.shape != (2, 1, 1):
        raise ValueError(f"Decisions are drawn of points in the plane, the runs' images are {data.facts.shape}.")
    train = data.batch("train")
    plane = Plane(train.x, train.y, data.facts.names, data.facts.box, points, eps, rounded)

    def decided(ran: Ran) -> Decided:
        network = loaded(ran, results.study.checkpoint).network
        return Decided(network, hardness(network, train.x).share)

    found, faults = common.look(results, entries, decided, "hardness")
    missing = common.left_out(results, entries, found, "weights", faults)
    if not found:
        return common.nothing(missing)
    rows, across = _rows([entry for entry in entries if entry.run in found], columns)
    side = (style.WIDTH - 2 * EDGE + SPACE) / across - SPACE
    high = side + LINE * (2.4 + _lines(rows, side)) + bool(rows[0].heading) * 1.6 * LINE
    parts = list(style.pages(rows, int((style.PAGE - 0.4) / high)))
    made = []
    for number, part in enumerate(parts, 1):
        figure = Figure(figsize=(style.WIDTH, high * len(part) + 0.35))
        _page(figure, part, found, plane, side, high)
        caption = style.sentences(
            style.part_of(number, len(parts)), _caption(plane), missing if number == len(parts) else ""
        )
        made.append(Drawn(figure, _told(part, found, plane), caption))
    return made


def _rows(entries: Sequence[Entry], columns: str | int) -> tuple[list[Row], int]:
    """The panels in rows, and how many a row has at most."""
    if isinstance(columns, int):
        titled = [(entry.label(), entry) for entry in entries]
        return [Row("", titled[at : at + columns]) for at in range(0, len(titled), columns)], columns
    groups: dict[object, Row] = {}
    for entry in entries:
        title = f"{columns} = {entry.place[columns]}" if columns in entry.place else ""
        groups.setdefault(entry.key(columns), Row(entry.label(columns), [])).panels.append((title, entry))
    return list(groups.values()), max(len(row.panels) for row in groups.values())


def _lines(rows: Sequence[Row], side: float) -> int:
    """How many lines the longest title of a panel has."""
    return max(_title(title, side).count("\n") for row in rows for title, _ in row.panels)


def _title(title: str, side: float) -> str:
    return wrapped(title, int(side / 0.058))


def _page(
    figure: Figure, rows: Sequence[Row], found: Mapping[str, Decided], plane: Plane, side: float, high: float
) -> None:
    """Draws rows of panels, and the legend below them."""
    width, height = figure.get_size_inches()
    handles: list[Any] = []
    panels = [(at, place, *each) for at, row in enumerate(rows) for place, each in enumerate(row.panels)]
    for at, place, title, entry in common.watched(panels, "decision maps"):
        top = height - at * high
        left, below = EDGE + place * (side + SPACE), top - high + 1.4 * LINE
        ax = figure.add_axes((left / width, below / height, side / width, side / height))
        handles = _panel(ax, found[entry.run].network, plane)
        ax.set_title(_title(title, side), fontsize=SMALL - 1, pad=2)
        ax.set_xlabel(f"p > 0.99: {100 * found[entry.run].hard:.0f} %", fontsize=SMALL - 1, labelpad=2)
        if place == 0 and rows[at].heading:
            heading = literal(rows[at].heading)
            figure.text(EDGE / width, (top - 0.2 * LINE) / height, heading, va="top", fontsize=SMALL, weight="bold")
    names = [str(handle.get_label()) for handle in handles]
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=SMALL, frameon=False)


def _panel(ax: Axes, network: nn.Module, plane: Plane) -> list[Any]:
    """Draws one network's panel; what the legend says of it."""
    order = torch.randperm(len(plane.points), generator=torch.Generator().manual_seed(0))[: plane.shown]
    dots: dict[str, Any] = {"points": plane.points[order], "labels": plane.labels[order]} if plane.shown else {}
    pure = panel(ax, network, plane.box, **dots, eps=plane.eps, size=SIZE, rounded=plane.rounded)
    ax.set(xticks=[], yticks=[])
    return legend_handles(pure, plane.names, bool(plane.shown), plane.eps)


def _caption(plane: Plane) -> str:
    what = "Colours: the predicted class" if plane.rounded else "Colours mix by the class probabilities at T = 1"
    dots = f" Dots: {plane.shown} of {len(plane.points)} training points." if plane.shown else ""
    boxes = f" Boxes: ±{plane.eps:g} around them, black where they hold two classes." if plane.eps else ""
    below = f" Below: the share of the {len(plane.points)} points at which the top probability exceeds 0.99."
    return f"{what}; black lines: where the class changes.{dots}{boxes}{below}"


def _told(rows: Sequence[Row], found: Mapping[str, Decided], plane: Plane) -> str:
    """What the maps show, in words."""
    low, high = plane.box
    runs = [entry.run for row in rows for _, entry in row.panels]
    least, most = (chosen(runs, key=lambda run: found[run].hard) for chosen in (min, max))
    names = style.some([row.heading or row.panels[0][0] for row in rows])
    return (
        f"Decision maps of {style.of(len(runs), 'network')} over the square from {low:g} to {high:g}: "
        f"{'predicted classes' if plane.rounded else 'class probabilities'} as colours; rows beginning with {names}. "
        f"The top probability exceeds 0.99 at {100 * found[least].hard:.0f} % of the training points ({least}) to "
        f"{100 * found[most].hard:.0f} % ({most})."
    )
