"""Metrics of several runs side by side."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interpret.figures import SMALL, wrapped
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry, Level
from studies.gather import Results

THICK = 0.125  # inches of a bar, as high as its number
LARGE = 1e4  # from where on an axis speaks of millions
GAP = 0.09  # inches between two runs


def bars(
    results: Results,
    entries: Sequence[Entry],
    *,
    metric: str | Sequence[str],
    judge: str | None = None,
    model: str = "own",
) -> list[Drawn]:
    """A group of bars for each run, one for each metric, with whiskers and numbers (001, figures 5 and 20)."""
    metrics = common.listed(metric)
    found = {
        entry.run: {
            one: level
            for one in metrics
            if (level := common.level(results.values(entry.run, one, judge, model).values())) is not None
        }
        for entry in entries
    }
    drawn = [entry for entry in entries if found[entry.run]]
    missing = common.left_out(results, entries, [entry.run for entry in drawn], " or ".join(metrics))
    if not drawn:
        return common.nothing(missing)
    levels = [each for entry in drawn for each in found[entry.run].values()]
    if len(units := dict.fromkeys(each.unit for each in levels)) > 1:
        raise ValueError(
            f"Bars share one axis, {', '.join(metrics)} have the units {', '.join(units)}: draw a figure each."
        )
    # A share's deviation may reach where no share can be.
    least, most = (0.0, 100.0) if levels[0].unit == "%" else (-math.inf, math.inf)
    ends = max(least, min(0.0, *(each.low for each in levels))), min(most, max(each.high for each in levels))
    parts = list(style.pages(drawn, int((style.PAGE - 0.6) / (THICK * len(metrics) + GAP))))
    made = []
    for number, part in enumerate(parts, 1):
        figure = _page(part, found, metrics, levels[0].unit, ends)
        told = [f"{one}: {_told(part, found, one)}." for one in metrics]
        whiskers = common.uncertainty(levels, "whiskers")
        caption = style.sentences(style.part_of(number, len(parts)), whiskers, missing if number == len(parts) else "")
        made.append(Drawn(figure, f"Bars of {style.of(len(part))}. {' '.join(told)}", caption))
    return made


def _page(
    part: Sequence[Entry],
    found: Mapping[str, Mapping[str, Level]],
    metrics: Sequence[str],
    unit: str,
    ends: tuple[float, float],
) -> Figure:
    group = THICK * len(metrics) + GAP
    figure = Figure(figsize=(style.WIDTH, group * len(part) + 0.5), layout="constrained")
    ax = figure.subplots()
    for place, one in enumerate(metrics):
        rows = [row for row, entry in enumerate(part) if one in found[entry.run]]
        shown = [found[part[row].run][one] for row in rows]
        at = np.array(rows) + (place - (len(metrics) - 1) / 2) * THICK / group
        values = [each.value for each in shown]
        ink = style.INKS[place % len(style.INKS)]
        ax.barh(at, values, THICK / group, color=ink, label=one)
        errors = [[each.value - each.low for each in shown], [each.high - each.value for each in shown]]
        ax.errorbar(values, at, xerr=errors, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=1.5)
        for y, each in zip(at, shown, strict=True):
            _number(ax, each, y, ends[1])
    ax.set_yticks(range(len(part)), [wrapped(entry.label(), 34) for entry in part])
    ax.set(ylim=(len(part) - 0.5, -0.5), xlim=(1.05 * ends[0], 1.1 * ends[1] or 1))
    if ends[1] > LARGE:
        ax.xaxis.set_major_formatter(lambda value, _: style.number(value) if value else "0")
    style.clean(ax)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"{metrics[0]}, {unit}" if len(metrics) == 1 else unit, fontsize=SMALL)
    if len(metrics) > 1:
        style.legend(figure, *ax.get_legend_handles_labels())
    return figure


def _number(ax: Axes, level: Level, y: float, high: float) -> None:
    """The value behind its bar, clear of the whisker."""
    end = (min(max(level.high, 0), high), y)
    text = style.number(level.value)
    ax.annotate(text, end, (2, 0), textcoords="offset points", va="center", fontsize=SMALL - 1)


def _told(part: Sequence[Entry], found: Mapping[str, Mapping[str, Level]], metric: str) -> str:
    """What the bars of a metric show, in words."""
    shown = {entry.label(): found[entry.run][metric] for entry in part if metric in found[entry.run]}
    if not shown:
        return "no figures yet"
    unit = next(iter(shown.values())).unit
    if len(shown) <= style.NAMED:
        return f"{', '.join(f'{name} {style.number(each.value)}' for name, each in shown.items())} {unit}"
    least, most = (chosen(shown, key=lambda name: shown[name].value) for chosen in (min, max))
    return f"from {style.number(shown[least].value)} ({least}) to {style.number(shown[most].value)} {unit} ({most})"
