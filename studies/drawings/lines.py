"""Metrics over a numeric axis of the study, and security curves over an attack's radius or steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from attacks.records import Record
from attacks.threat import Radius
from interpret.figures import SMALL, literal, wrapped
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry, Level
from studies.gather import Ran, Results

HEIGHT = 2.3  # inches of a panel
LABEL = 28  # characters along it
CLEAN = "clean"
OVER_EPS = " over eps"  # what a curve over radii is called by
PIXEL = "/255"  # what a radius of colour images is written in
Curve = Mapping[float, Level]
Ends = tuple[float, float] | None


def lines(
    results: Results,
    entries: Sequence[Entry],
    *,
    x: str,
    metric: str | Sequence[str],
    judge: str | None = None,
    model: str = "own",
    axis: str | None = None,
) -> list[Drawn]:
    """A metric over a numeric axis, a line per run, mean and deviation over the seeds (004, figures 1 to 13)."""
    metrics = common.listed(metric)
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.key(x), []).append(entry)
    if not common.on_axis(results, entries, x):
        return common.nothing(f"No run of this recipe lies on {x}.")
    found = {
        one: {key: _along(results, group, x, one, judge, model) for key, group in groups.items()} for one in metrics
    }
    shown = {
        entry.run for one in metrics for key in groups for entry in groups[key] if _at(entry, x) in found[one][key]
    }
    missing = common.left_out(results, entries, shown, " or ".join(metrics))
    if not shown:
        return common.nothing(missing)
    drawn = [one for one in metrics if any(found[one].values())]
    nobodys = f"No run has {' or '.join(one for one in metrics if one not in drawn)}." if drawn != metrics else ""
    figure = Figure(figsize=(style.WIDTH, HEIGHT * len(drawn) + 0.3), layout="constrained")
    axes = figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0]
    places = [float(entry.place[x]) for entry in entries if x in entry.place]
    published, told = False, []
    levels: list[Level] = []
    for ax, one in zip(axes, drawn, strict=True):
        for number, (key, group) in enumerate(groups.items()):
            label, curve = group[0].label(x), found[one][key]
            points = {float(at): value for at, value in group[0].published.get(one, {}).items()}
            _line(ax, number, label, curve, points, None if x in group[0].place else (min(places), max(places)))
            published |= bool(points)
            levels += curve.values()
        unit = next((each.unit for curve in found[one].values() for each in curve.values()), "")
        ax.set_ylabel(wrapped(f"{one}, {unit}" if unit else one, LABEL), fontsize=SMALL + 1)
        _limit(ax, unit)
        told.append(_told(one, {groups[key][0].label(x): curve for key, curve in found[one].items()}))
    if min(places) > 0 and max(places) > 20 * min(places):
        axes[-1].set_xscale("log")
        axes[-1].set_xticks(sorted(set(places)), [f"{place:g}" for place in sorted(set(places))], minor=False)
        axes[-1].minorticks_off()
    axes[-1].set_xlabel(axis or x, fontsize=SMALL + 1)
    handles, names = axes[0].get_legend_handles_labels()
    style.legend(figure, handles, names)
    hollow = "Hollow marks: published, in the paper's own setting." if published else ""
    caption = style.sentences(common.uncertainty(levels, "band"), hollow, missing, nobodys)
    return [Drawn(figure, f"Line chart over {axis or x}. {' '.join(told)}", caption)]


def security(
    results: Results, entries: Sequence[Entry], *, curve: str, judge: str | None = None, model: str = "own"
) -> list[Drawn]:
    """Accuracy over an attack's radius or number of steps, a line per run (004 has them over the steps)."""
    if not curve.endswith((OVER_EPS, " over steps")):
        raise ValueError(f"A security curve is called as its records are, 'PGD-20 over eps', got {curve!r}.")
    radii = curve.endswith(OVER_EPS)
    found = {entry.run: _curve(results.of(entry.run).values(), curve, judge, model) for entry in entries}
    shown = {run: points for run, (points, _) in found.items() if points}
    missing = common.left_out(results, entries, shown, f"the curve {curve}")
    if not shown:
        return common.nothing(missing)
    figure = Figure(figsize=(style.WIDTH, 3.3), layout="constrained")
    ax = figure.subplots()
    drawn = [entry for entry in entries if entry.run in shown]
    for number, entry in enumerate(drawn):
        _line(ax, number, entry.label(), shown[entry.run], {}, None)
    ax.set_ylabel("accuracy, %", fontsize=SMALL + 1)
    ax.set_ylim(0, 100)
    threat = found[drawn[0].run][1]
    norm, _, eps = threat.partition(" ")
    ax.set_xlabel(f"radius ({norm})" if radii else f"steps ({threat})", fontsize=SMALL + 1)
    if radii and eps.endswith(PIXEL):
        ax.xaxis.set_major_locator(MultipleLocator(4 / 255))
        ax.xaxis.set_major_formatter(lambda value, _: f"{255 * value:.0f}{PIXEL}")
    if not radii:
        steps = sorted({at for points in shown.values() for at in points})
        ax.set_xscale("log")
        ax.set_xticks(steps, [f"{at:g}" for at in steps])
        ax.minorticks_off()
    style.clean(ax)
    style.legend(figure, *ax.get_legend_handles_labels())
    attack = curve.rpartition(" over ")[0]
    told = _told(f"accuracy under {attack}", {entry.label(): shown[entry.run] for entry in drawn})
    levels = [each for points in shown.values() for each in points.values()]
    caption = style.sentences(f"{attack}.", common.uncertainty(levels, "band"), missing)
    return [Drawn(figure, f"Security curves over the {'radius' if radii else 'number of steps'}. {told}", caption)]


def _along(
    results: Results, group: Sequence[Entry], x: str, metric: str, judge: str | None, model: str
) -> dict[float, Level]:
    """A line's points: where a run lies on the axis, and its figure; at minus infinity, where it names no such axis."""
    found = {_at(entry, x): common.level(results.values(entry.run, metric, judge, model).values()) for entry in group}
    return {at: each for at, each in sorted(found.items()) if each is not None}


def _at(entry: Entry, x: str) -> float:
    value = entry.place.get(x, -math.inf)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"Lines go over numbers, {x} has {value!r} among its values: draw bars instead.")
    return float(value)


def _line(ax: Axes, number: int, label: str, curve: Curve, published: Mapping[float, float], across: Ends) -> None:
    """A line with its band; a level one over the whole axis where ``across`` says from where to where."""
    ink, dash = style.INKS[number % len(style.INKS)], style.DASHES[number // len(style.INKS) % len(style.DASHES)]
    mark = style.MARKS[(number + number // len(style.INKS)) % len(style.MARKS)]
    if across is not None:
        curve, dash, mark = {end: each for each in curve.values() for end in across}, ":", ""
    at = list(curve)
    ax.fill_between(at, [each.low for each in curve.values()], [each.high for each in curve.values()], **_pale(ink))
    values = [each.value for each in curve.values()]
    ax.plot(at, values, dash, marker=mark, markersize=4, linewidth=1.5, color=ink, label=literal(label))
    if published:
        ax.plot(*zip(*published.items(), strict=True), mark or "o", markersize=7, color=ink, markerfacecolor="none")


def _pale(ink: str) -> dict[str, Any]:
    return {"color": ink, "alpha": 0.15, "linewidth": 0}


def _limit(ax: Axes, unit: str) -> None:
    """A share's axis ends at 0 and 100 at the latest."""
    style.clean(ax)
    ax.grid(axis="y", color=style.GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    if unit == "%":
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, -1.0), min(high, 101.0))


def _curve(runs: Iterable[Ran], curve: str, judge: str | None, model: str) -> tuple[dict[float, Level], str]:
    """The points of a run's curve over its seeds, and the threat model that they are under."""
    found: dict[float, list[Record]] = {}
    threat = ""
    for ran in runs:
        for record in common.judged(ran, judge, model):
            name, _, value = record.metric.rpartition(": ")
            if name == curve:
                found.setdefault(float(Radius(value)), []).append(record)
                threat = record.threat
        clean = ran.record(CLEAN, judge, model)
        if clean is not None and curve.endswith(OVER_EPS):
            found.setdefault(0.0, []).append(clean)
    if not threat:
        return {}, ""
    levels = {at: common.level(records) for at, records in sorted(found.items())}
    return {at: each for at, each in levels.items() if each is not None}, threat


def _told(metric: str, curves: Mapping[str, Curve]) -> str:
    """What the lines of a panel show, in words: of a few each one's ends and highest point, of many their extent."""
    curves = {name: curve for name, curve in curves.items() if curve}
    values = [each.value for curve in curves.values() for each in curve.values()]
    if not values:
        return f"{metric}: no figures yet."
    unit = next(each.unit for curve in curves.values() for each in curve.values())
    if len(curves) > style.NAMED:
        return f"{metric}: {style.of(len(curves), 'line')}, {style.range_of(values, unit)}."
    parts = []
    for name, curve in curves.items():
        (start, one), (end, other) = next(iter(curve.items())), list(curve.items())[-1]
        if len(curve) == 1:
            parts.append(f"{name} {style.number(one.value)} {unit}")
            continue
        peak = max(curve, key=lambda at: curve[at].value)
        text = (
            f"{name} from {style.number(one.value)} at {start:.3g} to {style.number(other.value)} {unit} at {end:.3g}"
        )
        inner = peak not in (start, end)
        parts.append(text + f", highest {style.number(curve[peak].value)} at {peak:.3g}" * inner)
    return f"{metric}: {'; '.join(parts)}."
