"""How alike students and teachers explain what they see, run by run, above what chance reaches."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyarrow import parquet

from interpret.figures import SMALL, wrapped
from interpret.scores import FLOOR, PAIR
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry, Level
from studies.gather import Ran, Results

ABREAST = 3  # methods side by side
ROW = 0.3  # inches
SPREAD = (5, 25, 75, 95)  # percentiles over the images
COLOUR = style.INKS[1]


class Found(NamedTuple):
    """Of one run by one method: the pair's mean, the floor, and percentiles over the images of all seeds."""

    pair: Level
    floor: Level | None
    images: np.ndarray


def adherence(
    results: Results,
    entries: Sequence[Entry],
    *,
    method: str | Sequence[str] = "Saliency",
    measure: str = "absolute cosine",
    judge: str | None = None,
) -> list[Drawn]:
    """A measure of likeness for each run, a panel for each method, with the floor of chance (001, figures 8 and 15)."""
    methods = common.listed(method)
    found = {
        entry.run: {one: each for one in methods if (each := _found(results, entry.run, one, measure, judge))}
        for entry in entries
    }
    drawn = [entry for entry in entries if found[entry.run]]
    missing = common.left_out(results, entries, [entry.run for entry in drawn], f"adherence by {' or '.join(methods)}")
    if not drawn:
        return common.nothing(missing)
    parts = [
        (part, abreast)
        for abreast in style.pages(methods, ABREAST)
        for part in style.pages(drawn, int((style.PAGE - 1) / ROW))
    ]
    made = []
    for number, (part, abreast) in enumerate(parts, 1):
        figure = _page(part, found, abreast, measure)
        told = " ".join(_told(part, found, one) for one in abreast)
        levels = [each.pair for entry in part for each in found[entry.run].values()]
        what = "Bars: the middle half of the images, thin lines 90 % of them; ticks: the floor, the highest control."
        caption = style.sentences(
            style.part_of(number, len(parts)),
            what,
            common.uncertainty(levels, "whiskers of the mean (dot)"),
            missing if number == len(parts) else "",
        )
        made.append(Drawn(figure, f"Adherence ({measure}) of {style.of(len(part))}. {told}", caption))
    return made


def _found(results: Results, run: str, method: str, measure: str, judge: str | None) -> Found | None:
    name = f"adherence/{method}/{measure}"
    pair, floor = (common.level(results.values(run, metric, judge).values()) for metric in (name, f"{name}/{FLOOR}"))
    if pair is None:
        return None
    values = [_images(ran, f"{method}/{measure}/{PAIR}", judge) for ran in results.of(run).values()]
    values = [each[np.isfinite(each)] for each in values]
    # Of the code published with the paper an image's value is what it adds to the whole: no likeness of its own.
    told = np.concatenate(values) if measure != "zou2023" else np.empty(0)
    return Found(pair, floor, np.percentile(told, SPREAD) if len(told) else np.empty(0))


def _images(ran: Ran, column: str, judge: str | None) -> np.ndarray:
    """What was found on every image; empty where no judging has kept it."""
    folders = [folder for name, folder in ran.planned.judgings.items() if judge in (None, name)]
    for path in (path for folder in folders for path in folder.glob("outcomes/adherence-*.parquet")):
        if column in parquet.read_schema(path).names:
            return parquet.read_table(path, columns=[column])[column].to_numpy()
    return np.empty(0)


def _page(
    part: Sequence[Entry], found: Mapping[str, Mapping[str, Found]], methods: Sequence[str], measure: str
) -> Figure:
    figure = Figure(figsize=(style.WIDTH, ROW * len(part) + 0.7), layout="constrained")
    axes = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for ax, one in zip(axes, methods, strict=True):
        for row, entry in enumerate(part):
            if one in found[entry.run]:
                _row(ax, row, found[entry.run][one])
        ax.set_title(one, fontsize=SMALL + 1)
        ax.set_xlabel(measure, fontsize=SMALL)
        low, high = ax.get_xlim()
        ax.set_xlim(min(low, 0.0), max(high, 1.0))
        ax.grid(axis="x", color=style.GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        style.clean(ax)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(part)), [wrapped(entry.label(), 26) for entry in part])
    axes[0].set_ylim(len(part) - 0.5, -0.5)
    return figure


def _row(ax: Axes, row: int, found: Found) -> None:
    if len(found.images):
        least, lower, upper, most = found.images
        ax.plot([least, most], [row, row], color="#BBBBBB", linewidth=1.2, zorder=1)
        ax.plot([lower, upper], [row, row], color="#BBBBBB", linewidth=6, solid_capstyle="butt", zorder=1)
    pair = found.pair
    error = [[pair.value - pair.low], [pair.high - pair.value]]
    ax.errorbar(pair.value, row, xerr=error, fmt="o", color=COLOUR, markersize=4, elinewidth=1.2, capsize=2, zorder=3)
    if found.floor is not None:
        ax.plot([found.floor.value] * 2, [row - 0.36, row + 0.36], color="black", linewidth=1.6, zorder=2)


def _told(part: Sequence[Entry], found: Mapping[str, Mapping[str, Found]], method: str) -> str:
    """What a panel shows, in words."""
    shown = {entry.label(): found[entry.run][method] for entry in part if method in found[entry.run]}
    if not shown:
        return f"{method}: no figures yet."
    above = sum(each.floor is not None and each.pair.low > each.floor.value for each in shown.values())
    if len(shown) > style.NAMED:
        text = style.range_of((each.pair.value for each in shown.values()), "on average")
    else:
        floors = {name: f" above a floor of {each.floor.value:.2f}" for name, each in shown.items() if each.floor}
        text = ", ".join(f"{name} {each.pair.value:.2f}{floors.get(name, '')}" for name, each in shown.items())
    return f"{method}: {text}; {above} of {len(shown)} clearly above their floor."
