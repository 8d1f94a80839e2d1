"""What a study's finished runs say, by name and seed."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from attacks.records import Record
from studies.disk import FACTS, get
from studies.plan import Plan, Planned

COUNT = "count"  # the unit of what is counted, and so exact
# What a fit itself says of its run, beside its tests' records: metric, key in its facts, unit, factor.
OF_THE_FIT = {
    "parameters": ("parameters", COUNT, 1.0),
    "multiply-adds": ("multiply_adds", COUNT, 1.0),
    "hours": ("seconds", "h", 1 / 3600),
}
OWN = ("student", "network")  # the role of what was trained; the other is its teacher


@dataclass(frozen=True)
class Ran:
    """One run of a study.

    Attributes:
        planned: the cell and its place.
        state: its plan's word for it, :meth:`studies.plan.Plan.state`.
    """

    planned: Planned
    state: str

    @property
    def name(self) -> str:
        return self.planned.cell.name

    @property
    def seed(self) -> int:
        return self.planned.cell.seed

    @property
    def axes(self) -> Mapping[str, Any]:
        return self.planned.cell.axes

    @property
    def folder(self) -> Path:
        """The fit's run folder."""
        return self.planned.folder

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What its fit was and took, as its worker wrote it; empty where it is not complete."""
        path = self.folder / FACTS
        return get(path) if path.exists() else {}

    @cached_property
    def records(self) -> dict[str, list[Record]]:
        """The records of each of its tests that are complete, by the judging's name."""
        complete = {name: folder for name, folder in self.planned.judgings.items() if folder.exists()}
        return {name: _records(folder / "results.csv") for name, folder in complete.items()}

    def record(self, metric: str, judge: str | None = None, model: str = "own") -> Record | None:
        """One figure of it; None where there is none.

        Args:
            metric: as ``results.csv`` calls it, or a key of :data:`OF_THE_FIT`.
            judge: the judging; by default the first that knows the metric.
            model: ``own`` for what was trained, ``teacher`` for its teacher.
        """
        if metric in OF_THE_FIT:
            key, unit, factor = OF_THE_FIT[metric]
            value = self.facts.get(key)
            # Of a resumed fit only the end was timed.
            if value is None or model != "own" or (metric == "hours" and self.facts.get("resumed")):
                return None
            return Record(metric, value * factor, 1, value * factor, value * factor, 0.0, unit=unit)
        return self._found(metric, judge, model)[1]

    def outcomes(self, metric: str, judge: str | None = None, model: str = "own") -> Path | None:
        """The file that tells of every image behind a figure, as :meth:`record` finds it; None where there is none."""
        name, record = self._found(metric, judge, model)
        if record is None:
            return None
        judged = "-".join(filter(None, [record.model, record.checkpoint]))
        path = self.planned.judgings[name] / "outcomes" / f"{judged}.parquet"
        return path if path.is_file() else None

    def _found(self, metric: str, judge: str | None, model: str) -> tuple[str, Record | None]:
        """A test's figure, and the judging that has it; what came out as no number is none."""
        for name, records in self.records.items():
            for record in records if judge in (None, name) else ():
                own = record.model in OWN
                if record.metric == metric and own == (model == "own") and not math.isnan(record.value):
                    return name, record
        return "", None


class Results:
    """All runs of a study, finished or not.

    Args:
        plan: the study and its places.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.study = plan.study
        self.runs = [Ran(planned, plan.state(planned)) for planned in plan.cells.values()]
        self._by_name: dict[str, dict[int, Ran]] = {}
        for ran in self.runs:
            self._by_name.setdefault(ran.name, {})[ran.seed] = ran

    @property
    def names(self) -> list[str]:
        """The runs' names, in the grid's order, teachers first."""
        return list(self._by_name)

    def of(self, name: str) -> dict[int, Ran]:
        """A run under each of its seeds.

        Raises:
            ValueError: where the study has no run of this name.
        """
        if name not in self._by_name:
            raise ValueError(f"{self.study.name} has no run {name!r}; it has {', '.join(self._by_name)}.")
        return self._by_name[name]

    def values(self, name: str, metric: str, judge: str | None = None, model: str = "own") -> dict[int, Record]:
        """A figure of a run under each seed that has it; see :meth:`Ran.record`.

        Raises:
            ValueError: where the study has no run of this name or no such judging, or for another model.
        """
        if judge is not None and all(judge not in ran.planned.judgings for ran in self.runs):
            raise ValueError(f"{self.study.name} has no judging {judge!r}.")
        if model not in ("own", "teacher"):
            raise ValueError(f"A figure is that of the run's own model or of its teacher, got {model!r}.")
        found = {seed: ran.record(metric, judge, model) for seed, ran in self.of(name).items()}
        return {seed: record for seed, record in found.items() if record is not None}


def _records(path: Path) -> list[Record]:
    if not path.exists():
        return []  # of a test that measured nothing
    kinds = {field.name: field.type for field in fields(Record)}
    with path.open(newline="") as file:
        return [Record(**{key: _as(value, kinds[key]) for key, value in row.items()}) for row in csv.DictReader(file)]


def _as(value: str, kind: Any) -> Any:
    return {"int": int, "float": float}.get(getattr(kind, "__name__", str(kind)), str)(value)
