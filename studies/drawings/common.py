"""What all figures share: which runs they draw, what of them is known, and what they lack."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from matplotlib.figure import Figure
from rich import get_console
from rich.progress import track

from attacks.records import Record
from interpret.figures import SMALL
from studies.drawings import style
from studies.entries import Scope
from studies.gather import OWN, Ran, Results
from studies.grid import filled
from studies.stats import spread_of

RUN = {"run", "label", "published", "over", "except"}  # of an entry of a figure's runs

Item = TypeVar("Item")


@dataclass(frozen=True)
class Drawn:
    """A figure of the report.

    Attributes:
        figure: the figure.
        alt: what is to be seen on it, for those who do not see it.
        caption: how it was made, and what it lacks.
        title: as the grid says it, with the axes' values.
    """

    figure: Figure
    alt: str
    caption: str
    title: str = ""


@dataclass(frozen=True)
class Entry:
    """A run that a figure draws.

    Attributes:
        run: the run's name.
        template: what the name was made from.
        place: the axes' values in it.
        called: template of what the figure calls it; by default the run's name.
        published: the paper's figures, by metric and value of an axis.
    """

    run: str
    template: str
    place: Mapping[str, Any] = field(default_factory=dict)
    called: str | None = None
    published: Mapping[str, Mapping[Any, float]] = field(default_factory=dict)

    def label(self, without: str | None = None) -> str:
        """What the figure calls it, without the value of the axis that goes across.

        Where the grid gives no label, what lies between commas and names that axis is left out.
        """
        template = self.called or self.template
        axis = "{" + str(without) + "}"
        if axis in template:
            kept = [part for part in template.split(", ") if axis not in part]
            template = ", ".join(kept) if kept else template.replace(axis, "…")
        return str(filled(template, self.place, self.template))

    def key(self, without: str) -> tuple[Any, ...]:
        """What it shares with the runs that differ from it on one axis alone."""
        return self.template, *((axis, value) for axis, value in self.place.items() if axis != without)


def entries(scope: Scope, runs: Any) -> list[Entry]:
    """The runs that a figure's ``runs`` stand for, in their order; see :mod:`studies.drawings`.

    Raises:
        ValueError: for what names no run, an axis that is none, or a run that the study does not have; a recipe may
            leave out what the paper's has.
    """
    found = []
    for each in listed(runs):
        said = each if isinstance(each, Mapping) else {"run": each}
        own = scope.entry(said, RUN, ("run",), ", a run")
        template, called, published = said["run"], said.get("label"), said.get("published") or {}
        known = [
            Entry(run, template, at.place, called, published)
            for at in own.places(said, "run")
            if (run := at.run(template)) is not None
        ]
        if not known:
            own.refuse_run(template)
        for entry in known:
            entry.label()  # refuses an axis that it does not have
        found += known
    return found


def judged(ran: Ran, judge: str | None, model: str) -> list[Record]:
    """What a run's judgings, or one of them, say of its own model or of its teacher."""
    found = [record for name, records in ran.records.items() if judge in (None, name) for record in records]
    return [record for record in found if (record.model in OWN) == (model == "own")]


def listed(said: Any) -> list[Any]:
    """A list, or the one thing that stands for it."""
    return list(said) if isinstance(said, list | tuple) else [said]


@dataclass(frozen=True)
class Level:
    """A figure of a run, in the unit of a table: the mean over its seeds, or one seed's.

    Attributes:
        value: the mean.
        low: one standard deviation below it; of one seed the lower end of the images' 95 % interval.
        high: above it, likewise.
        seeds: number of seeds.
        unit: ``%`` of a share, the record's of a mean.
    """

    value: float
    low: float
    high: float
    seeds: int
    unit: str


def level(records: Iterable[Record]) -> Level | None:
    """What the records of one metric, one for each seed, say; None where there is none."""
    records = [record for record in records if math.isfinite(record.value)]
    if not records:
        return None
    unit = records[0].unit or "%"
    scale = 1.0 if records[0].unit else 100.0
    if len(records) == 1:
        record = records[0]
        return Level(scale * record.value, scale * record.low, scale * record.high, 1, unit)
    found = spread_of([scale * record.value for record in records])
    return Level(found.mean, found.mean - found.sd, found.mean + found.sd, found.n, unit)


def uncertainty(levels: Iterable[Level], what: str) -> str:
    """A caption's sentence on what bands or whiskers show."""
    seeds = sorted({each.seeds for each in levels})
    if seeds == [1]:
        return f"One seed; {what}: 95 % interval over the test images."
    many = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    alone = ", of one seed the 95 % interval over the test images" if seeds and seeds[0] == 1 else ""
    return f"Mean over {many}; {what}: one standard deviation{alone}."


def trained(results: Results, entries: Sequence[Entry]) -> Ran | None:
    """The first of the runs that has been trained; None where none has."""
    return next((ran for entry in entries for ran in results.of(entry.run).values() if ran.planned.trained), None)


def watched(items: Sequence[Item], title: str) -> Iterable[Item]:
    """Items one after another, on a terminal behind a bar that goes when they are done."""
    return track(items, title, transient=True, disable=not get_console().is_terminal)


def look(
    results: Results, entries: Sequence[Entry], at: Callable[[Ran], Item], title: str
) -> tuple[dict[str, Item], dict[str, str]]:
    """What is found at each run under its first seed that has been trained, and why at others nothing could be.

    A network that cannot be looked at, such as one that has diverged, is left out: it must not cost all others their
    figure.

    Args:
        results: the study's.
        entries: the runs.
        at: what looks at one.
        title: of the progress bar.
    """
    found, faults = {}, {}
    for run in watched(list(dict.fromkeys(entry.run for entry in entries)), title):
        ran = trained(results, [Entry(run, run)])
        if ran is not None:
            try:
                found[run] = at(ran)
            except (ValueError, OSError) as error:
                faults[run] = str(error)
    return found, faults


def left_out(
    results: Results, entries: Sequence[Entry], shown: Iterable[str], what: str, faults: Mapping[str, str] | None = None
) -> str:
    """A caption's sentence on the runs that could not be drawn; empty where there is none.

    Args:
        results: the study's.
        entries: the runs that were to be drawn.
        shown: those that were.
        what: what a run that is finished lacks, such as a metric.
        faults: what went wrong with some.
    """
    reasons: dict[str, list[str]] = {}
    for run in dict.fromkeys(entry.run for entry in entries):
        if run not in shown:
            states = [ran.state for ran in results.of(run).values()]
            worst = next((state for state in ("done", "failed", "skipped") if state in states), "waiting")
            said = {"done": f"without {what}", "waiting": "not run"}.get(worst, worst)
            reason = (faults or {}).get(run) or said
            reasons.setdefault(reason.rstrip("."), []).append(run)
    told = [f"{style.some(names)} ({reason})" for reason, names in reasons.items()]
    return f"Left out: {'; '.join(told)}." if told else ""


def nothing(caption: str) -> list[Drawn]:
    """What stands in a figure's place where none of its runs can be drawn."""
    figure = Figure(figsize=(style.WIDTH, 0.7))
    figure.text(0.5, 0.5, "Nothing to draw yet", ha="center", va="center", fontsize=SMALL + 2, color="#666666")
    return [Drawn(figure, "Nothing is drawn: no run of this figure has what it needs.", caption)]


def on_axis(results: Results, entries: Sequence[Entry], axis: str) -> bool:
    """Whether any run lies on an axis; a recipe may leave out those that do.

    Raises:
        ValueError: where the paper's has none either.
    """
    if any(axis in entry.place for entry in entries):
        return True
    if results.study.recipe == "paper":
        named = ", ".join(dict.fromkeys(name for entry in entries for name in entry.place))
        raise ValueError(f"{results.study.name}: a figure goes over {axis!r}, its runs name {named or 'no axis'}.")
    return False
