"""How networks fare on corrupted images."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from attacks.results import CLEAN
from interpret.figures import DIVERGING, SMALL, wrapped
from shift.figures import numbered
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry
from studies.gather import Results

CELL = re.compile(r"(?P<source>.+): (?P<kind>(?!severity )\w+) (?P<severity>\d)")
ROW = 0.235  # inches
Cells = Mapping[tuple[str, int], float]  # accuracy in per cent by corruption and severity; clean at severity 0


def corruptions(
    results: Results,
    entries: Sequence[Entry],
    *,
    source: str | None = None,
    severities: str = "each",
    judge: str | None = None,
) -> list[Drawn]:
    """Accuracy by corruption and severity and the difference to the teacher's, or all runs in one (004, figure 5)."""
    if severities not in ("each", "mean"):
        raise ValueError(f"severities is each or mean, got {severities!r}.")
    own = {entry.run: _cells(results, entry.run, source, judge, "own") for entry in entries}
    drawn = [entry for entry in entries if own[entry.run][1]]
    missing = common.left_out(results, entries, [entry.run for entry in drawn], "corrupted images")
    if not drawn:
        return common.nothing(missing)
    if severities == "mean":
        made = [_means(part, own) for part in style.pages(drawn, int((style.PAGE - 1.5) / ROW))]
    else:
        teachers = {entry.run: _cells(results, entry.run, source, judge, "teacher")[1] for entry in drawn}
        made = [_each(entry, *own[entry.run], teachers[entry.run]) for entry in drawn]
    last = made[-1]
    return [*made[:-1], Drawn(last.figure, last.alt, style.sentences(last.caption, missing))]


def _cells(results: Results, run: str, source: str | None, judge: str | None, model: str) -> tuple[str, Cells]:
    """What the corruptions are called, by default those that come first, and the accuracies, means over the seeds."""
    records = [record for ran in results.of(run).values() for record in common.judged(ran, judge, model)]
    cells = [(found, record.value) for record in records if (found := CELL.fullmatch(record.metric))]
    if source is None:
        source = cells[0][0]["source"] if cells else ""
    values: dict[tuple[str, int], list[float]] = {}
    for found, value in cells:
        if found["source"] == source:
            values.setdefault((found["kind"], int(found["severity"])), []).append(100 * value)
    if values:
        values[CLEAN, 0] = [100 * record.value for record in records if record.metric == f"{source}: {CLEAN}"]
    return source, {cell: float(np.mean(each)) for cell, each in values.items() if each}


def _matrix(cells: Cells) -> tuple[list[str], list[int], np.ndarray]:
    """Corruptions, severities, and the accuracies (corruptions, severities), clean images first."""
    kinds = list(dict.fromkeys(kind for kind, _ in cells if kind != CLEAN))
    severities = sorted({severity for _, severity in cells})
    grid = [[cells.get((kind if s else CLEAN, s), np.nan) for s in severities] for kind in kinds]
    return kinds, severities, np.array(grid)


def _each(entry: Entry, source: str, own: Cells, teacher: Cells) -> Drawn:
    """One run's heat map and, where its teacher was judged too, the difference."""
    kinds, severities, accuracy = _matrix(own)
    panels: list[tuple[str, np.ndarray, str | Colormap, Normalize, str]] = [
        ("accuracy, %", accuracy, "viridis", Normalize(0, 100), "{:.0f}")
    ]
    alt = (
        f"Accuracy of {entry.label()} under {style.of(len(kinds), 'corruption')} of {source}: "
        f"{style.range_of(_known(accuracy), '%')}; worst under {_worst(own)}."
    )
    if teacher:
        _, _, other = _matrix({cell: teacher.get(cell, np.nan) for cell in own})
        gap = accuracy - other
        reach = float(np.nanmax(np.abs(gap))) or 1.0
        panels.append(("minus the teacher's, points", gap, DIVERGING.reversed(), Normalize(-reach, reach), "{:+.0f}"))
        alt += f" Minus its teacher's: {style.range_of(_known(gap), 'percentage points')}."
    figure = Figure(figsize=(style.WIDTH, ROW * len(kinds) + 1.1), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, values, colours, norm, form) in zip(axes, panels, strict=True):
        numbered(ax, values, colours, norm, form)
        ax.axvline(0.5, color="white", linewidth=3)
        ax.set_title(title, fontsize=SMALL + 1)
        ax.set_xticks(range(len(severities)), [str(s) if s else CLEAN for s in severities], fontsize=SMALL)
        ax.set_xlabel("severity", fontsize=SMALL)
    axes[0].set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=SMALL)
    return Drawn(figure, alt, f"{entry.label()} on {source}.")


def _means(part: Sequence[Entry], own: Mapping[str, tuple[str, Cells]]) -> Drawn:
    """A row for each run: the mean over the severities of each corruption, columns as tall as their names."""
    matrices = {entry.run: _matrix(own[entry.run][1]) for entry in part}
    kinds = list(dict.fromkeys(kind for found, _, _ in matrices.values() for kind in found))
    values = np.full((len(part), 1 + len(kinds)), np.nan)
    for row, entry in enumerate(part):
        found, severities, grid = matrices[entry.run]
        corrupted = grid[:, 1:] if severities[0] == 0 else grid
        values[row, 0] = own[entry.run][1].get((CLEAN, 0), np.nan)
        values[row, [1 + kinds.index(kind) for kind in found]] = corrupted.mean(1)
    figure = Figure(figsize=(style.WIDTH, ROW * len(part) + 1.3), layout="constrained")
    ax = figure.subplots()
    numbered(ax, values, "viridis", Normalize(0, 100), "{:.0f}")
    ax.axvline(0.5, color="white", linewidth=3)
    names = [CLEAN, *(kind.replace("_", " ") for kind in kinds)]
    ax.set_xticks(range(len(names)), names, fontsize=SMALL, rotation=90)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_yticks(range(len(part)), [wrapped(entry.label(), 26) for entry in part], fontsize=SMALL)
    means = {entry.label(): float(np.nanmean(values[row, 1:])) for row, entry in enumerate(part)}
    best, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    alt = (
        f"Accuracy of {style.of(len(part))} under {style.of(len(kinds), 'corruption')}, means over the severities: "
        f"{style.range_of(_known(values[:, 1:]), '%')}. On average {best} keeps most ({means[best]:.1f} %), "
        f"{least} least ({means[least]:.1f} %)."
    )
    return Drawn(figure, alt, f"Accuracy in %, mean over the severities of {own[part[0].run][0]}.")


def _known(values: np.ndarray) -> list[float]:
    return list(values[~np.isnan(values)])


def _worst(cells: Cells) -> str:
    kind, severity = min(cells, key=cells.__getitem__)
    return f"{kind.replace('_', ' ')} at severity {severity}"
