"""What a comparison of attribution maps found: means with intervals, floors, skill, as records and as a table."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from scipy import stats

from attacks.records import Record, share
from interpret.measures import interval, resample

PAIR, SHIFTED, UNTRAINED = "pair", "shifted", "untrained"
FLOOR, SKILL, DEFINED, ERROR = "floor", "skill", "defined", "convergence error"
RESERVED = (PAIR, SHIFTED, UNTRAINED, FLOOR, SKILL, DEFINED, ERROR, "student", "teacher")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, over ``n`` images; NaN where it is defined for none."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{_number(self.value)} [{_number(self.low, 2)},{_number(self.high, 2)}]"


NONE = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Row:
    """How well student and teacher agree by one method and one measure.

    Attributes:
        method: the attribution method's name.
        measure: a name in ``MEASURES``, or ``zou2023``.
        pair: student and teacher.
        controls: the same measure where there is nothing to agree on, by the control's name.
        floor: the highest control.
        skill: ``(pair - floor) / (1 - floor)``: 1 for a perfect student, 0 for one that is no better than chance.
        count: number of images, those included for which the pair is not defined.
    """

    method: str
    measure: str
    pair: Estimate
    controls: dict[str, Estimate]
    floor: Estimate
    skill: Estimate
    count: int


@dataclass(frozen=True)
class Adherence:
    """How alike the maps of student and teacher are on every image, and those of the controls.

    Attributes:
        index: the images' positions in their dataset, (n,).
        target: the class that every image was explained for, (n,).
        values: for (method, measure), by ``pair`` and the controls' names: float64 (n,), NaN where the measure is not
            defined. With ``compat`` what each image adds to the whole, whose mean is the figure.
        errors: relative convergence errors (n,) of each method that has them, by ``student`` and ``teacher``.
        seconds: wall-clock time.
        seed: of the bootstrap.
    """

    index: np.ndarray
    target: np.ndarray
    values: dict[tuple[str, str], dict[str, np.ndarray]]
    errors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    seconds: float = 0.0
    seed: int = 0

    @cached_property
    def rows(self) -> list[Row]:
        """Means, floor and skill of every method by every measure, all over the same bootstrap draws of the images.

        So the intervals of floor and skill hold that the same images were hard, or easy, for pair and controls, and
        that another draw may have another control on top.
        """
        if not self.values:
            return []
        columns = np.array([list(found.values()) for found in self.values.values()])  # (rows, pair and controls, n)
        drawn = resample(columns.reshape(-1, columns.shape[2]).T, self.seed).reshape(-1, *columns.shape[:2])
        rows = []
        for (key, found), means in zip(self.values.items(), drawn.swapaxes(0, 1), strict=True):
            estimates = {
                name: Estimate(_mean(column), *interval(means[:, place]), int((~np.isnan(column)).sum()))
                for place, (name, column) in enumerate(found.items())
            }
            pair = estimates.pop(PAIR)
            controls = [control for control in estimates.values() if not math.isnan(control.value)]
            highest = max(controls, key=lambda control: control.value, default=NONE)
            floors = np.fmax.reduce(means[:, 1:], axis=1)
            floor = Estimate(highest.value, *interval(floors), highest.n)
            value = float(_skill(pair.value, floor.value))
            skill = Estimate(value, *interval(_skill(means[:, 0], floors)), pair.n)
            rows.append(Row(*key, pair, estimates, floor, skill, columns.shape[2]))
        return rows

    def records(self) -> Iterator[Record]:
        """For every method and measure the pair, each control, floor and skill, and where the measure is defined.

        A figure that is defined for no image has no record.
        """
        seconds = round(self.seconds, 3)
        for row in self.rows:
            name = f"adherence/{row.method}/{row.measure}"
            figures = {name: row.pair, **{f"{name}/{control}": found for control, found in row.controls.items()}}
            for metric, found in {**figures, f"{name}/{FLOOR}": row.floor, f"{name}/{SKILL}": row.skill}.items():
                if not math.isnan(found.value):
                    unit = SKILL if found is row.skill else "similarity"
                    yield Record(metric, found.value, found.n, found.low, found.high, seconds, unit=unit)
            yield share(f"{name}/{DEFINED}", row.pair.n, row.count, seconds)
        for (method, role), error in self._convergence().items():
            metric = f"adherence/{method}/{ERROR}/{role}"
            yield Record(metric, error.value, error.n, error.low, error.high, seconds, unit="median relative error")

    def table(self, title: str = "Does the student look where its teacher looks?") -> Table:
        """A row per method and measure: the pair, each control, floor and skill; below it what else is to be said."""
        table = Table(title=title, title_style="bold", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("", min_width=max((len(row.measure) + 1 for row in self.rows), default=0))
        controls = list(self.rows[0].controls) if self.rows else []
        for name in ("student [95 %]", *controls, FLOOR, "skill [95 %]"):
            # A control of several words has a header of several lines, before any interval is broken.
            width = None if "[" in name else max(6, *map(len, name.split()))
            table.add_column(name, justify="right", width=width, no_wrap="[" in name)
        for number, row in enumerate(self.rows):
            if not number or row.method != self.rows[number - 1].method:
                table.add_section()
                table.add_row(Text(row.method, style="bold"))
            cells = [_number(control.value) for control in row.controls.values()]
            table.add_row(f" {row.measure}", str(row.pair), *cells, _number(row.floor.value), str(row.skill))
        notes = ["floor: the highest control; skill = (student - floor) / (1 - floor)"]
        partly: dict[tuple[str, float], list[str]] = {}
        for row in self.rows:
            partly.setdefault((row.method, row.pair.n / row.count), []).append(row.measure)
        for (method, part), measures in partly.items():
            if part < 1:
                every = len(measures) == sum(row.method == method for row in self.rows)
                what = "all measures are" if every else ", ".join(measures)
                notes.append(f"{method}: {what} defined on {part:.1%} of the images")
        for (method, role), error in self._convergence().items():
            notes.append(f"{method}, {role}: median convergence error {error.value:.2%}")
        table.caption = "\n".join(notes)
        return table

    def _convergence(self) -> dict[tuple[str, str], Estimate]:
        """Medians of the convergence errors: where two logits are all but equal a relative error has no bound."""
        found = {}
        for method, errors in self.errors.items():
            for role in ("student", "teacher"):
                error = errors[role][np.isfinite(errors[role])]
                if len(error):
                    low = high = error[0]
                    if len(error) > 1:
                        drawn = stats.bootstrap((error,), np.median, method="percentile", rng=self.seed, batch=100)
                        low, high = drawn.confidence_interval
                    found[method, role] = Estimate(float(np.median(error)), float(low), float(high), len(error))
        return found


def _mean(values: np.ndarray) -> float:
    """Mean of the defined values; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _skill(pair: np.ndarray | float, floor: np.ndarray | float) -> np.ndarray:
    """``(pair - floor) / (1 - floor)``; NaN where the floor leaves nothing to gain."""
    room = 1 - np.asarray(floor)
    return (pair - floor) / np.where(room > 1e-9, room, np.nan)


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
