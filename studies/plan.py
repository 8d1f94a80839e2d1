"""From a grid to what is on disk: every cell's folder, what is missing, and which cells share a process.

A cell's folder is named by a hash of what decides its weights: its configs' contents, options, seed, its teacher's
folder, and the code behind the classes that they name. So a finished run is never taken for one with other settings,
and never written over; whatever changes gets a folder of its own, and what is there already is used, whichever study it
was made for::

    RUNS/studies/cells/KEY-CODE/                       a fit's run folder, there once it is complete
    RUNS/studies/cells/KEY-CODE/judgings/NAME-KEY-CODE/  a test's, likewise
    RUNS/studies/cells/.KEY-CODE.partial/              a fit that has begun
    RUNS/studies/logs/KEY-CODE.log                     what both printed, and KEY-CODE.failed.json where one failed
    RUNS/studies/STUDY-RECIPE/                         plans, indexes of finished groups, logs, the report
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from studies.cells import Cell, Study
from studies.code import EVALUATION, code_key
from studies.contents import class_paths, contents, judged, judging, training
from studies.disk import get, key_of, log_of, partial, put

# What every fit runs through, and what a flavour may stand for.
TRAINING = (
    *("lightning_modules.Teacher", "lightning_modules.DefensiveDistillation", "lightning_modules.flavours"),
    "lightning_modules.averaging",  # --ema
)


@dataclass(frozen=True)
class Planned:
    """A cell and its place.

    Attributes:
        cell: what is run.
        folder: the fit's run folder, once it is complete.
        teacher: the id of the cell that teaches it.
        judgings: the folder of each test, once it is complete, by its name.
    """

    cell: Cell
    folder: Path
    teacher: str | None
    judgings: Mapping[str, Path]

    @property
    def partial(self) -> Path:
        """Where the fit works until it is complete."""
        return partial(self.folder)

    @property
    def trained(self) -> bool:
        return self.folder.exists()

    @property
    def done(self) -> bool:
        """Whether the fit and every test of it are complete."""
        return self.trained and all(folder.exists() for folder in self.judgings.values())

    @property
    def failure(self) -> dict[str, Any] | None:
        """What its last attempt said, where it failed: ``said``, ``log`` and ``step``."""
        return None if self.done or not self.failed.exists() else get(self.failed)

    @property
    def failed(self) -> Path:
        """Where a failure is kept, beside the log."""
        return log_of(self.folder).with_suffix(".failed.json")


@dataclass(frozen=True)
class Group:
    """Cells that one process runs, one after another.

    Attributes:
        name: of its job.
        cells: their ids.
        needs: the groups that hold their teachers.
        index: the file that says that all of them have been seen to.
    """

    name: str
    cells: tuple[str, ...]
    needs: tuple[str, ...]
    index: Path


@dataclass(frozen=True)
class Plan:
    """A study and its places.

    Attributes:
        study: the grid.
        runs: where all runs are kept.
        folder: the study's own.
        cells: every cell by its id, teachers before their students.
        groups: which of them share a process.
    """

    study: Study
    runs: Path
    folder: Path
    cells: Mapping[str, Planned]
    groups: tuple[Group, ...]

    @cached_property
    def said(self) -> dict[str, Any]:
        """What the workers need."""
        jobs = {id: self._job(planned) for id, planned in self.cells.items()}
        groups = [
            {"name": g.name, "cells": g.cells, "needs": g.needs, "index": str(g.index.absolute())} for g in self.groups
        ]
        said = {"study": self.study.name, "recipe": self.study.recipe, "threads": self.study.threads}
        return said | {"root": str(Path.cwd()), "python": sys.executable, "cells": jobs, "groups": groups}

    @property
    def file(self) -> Path:
        """Of its own for every grid: what is being run goes by the one that it began with."""
        return self.folder / f"plan-{key_of(self.said)}.json"

    def ancestors(self, planned: Planned) -> Iterator[Planned]:
        """Its teacher, that one's teacher, and so on."""
        while planned.teacher is not None:
            planned = self.cells[planned.teacher]
            yield planned

    def skipped_for(self, planned: Planned) -> Planned | None:
        """The teacher for whose failure it is not run."""
        return next((each for each in self.ancestors(planned) if not each.trained and each.failure), None)

    def state(self, planned: Planned) -> str:
        """``done``, ``failed``, ``skipped`` for a teacher's failure, or ``waiting``."""
        if planned.done:
            return "done"
        if planned.failure:
            return "failed"
        return "skipped" if self.skipped_for(planned) else "waiting"

    def write(self) -> None:
        """Writes what the workers need, whole or not at all."""
        self.folder.joinpath("indexes").mkdir(parents=True, exist_ok=True)
        put(self.file, self.said)

    def forget(self) -> None:
        """Forgets the indexes of groups with something to do."""
        for group in self.groups:
            if not all(self.cells[id].done for id in group.cells):
                group.index.unlink(missing_ok=True)

    def _job(self, planned: Planned) -> dict[str, Any]:
        cell = planned.cell
        return {
            "name": cell.name,
            "seed": cell.seed,
            "axes": cell.axes,
            "words": cell.asked.words(),
            "judged": judging(cell.asked),
            "folder": str(planned.folder.absolute()),
            "teacher": planned.teacher and str(self.cells[planned.teacher].folder.absolute()),
            "checkpoint": self.study.checkpoint,
            "alone": self.study.group == 1,
            "judgings": {
                name: {"folder": str(folder.absolute()), "words": cell.judgings[name].words()}
                for name, folder in planned.judgings.items()
            },
        }


def plan(study: Study, runs: Path, any_code: bool = False) -> Plan:
    """Finds every cell its place.

    Args:
        study: the grid.
        runs: where all runs are kept.
        any_code: a run that other code has finished counts; by default it is made again.

    Raises:
        ValueError: for teachers in a circle, or a teacher that has no seed in common with its student.
    """
    root = runs / "studies"
    ordered = _in_order(study.cells)
    cells: dict[str, Planned] = {}
    for cell, teacher in ordered:
        learned = [cells[teacher].folder.name, study.checkpoint] if teacher else None
        folder = _folder(cell, learned, root / "cells", any_code)
        judgings = {
            name: _judging(name, cell, study.checkpoint, folder / "judgings", any_code) for name in cell.judgings
        }
        cells[cell.id] = Planned(cell, folder, teacher, judgings)
    places = [planned.folder for planned in cells.values()]
    for planned in cells.values():
        if places.count(planned.folder) > 1:
            same = [each.cell.name for each in cells.values() if each.folder == planned.folder]
            raise ValueError(f"{study.name} asks for the same run under two names: {same[0]!r} and {same[1]!r}.")
    folder = root / study.called
    return Plan(study, runs, folder, cells, tuple(_groups(cells, study.group, folder / "indexes")))


def _in_order(cells: Sequence[Cell]) -> list[tuple[Cell, str | None]]:
    """The cells, teachers first, each with its teacher's id."""
    by_name: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.name, {})[cell.seed] = cell
    found: dict[str, tuple[Cell, str | None]] = {}

    def visit(cell: Cell, path: tuple[str, ...]) -> None:
        if cell.id in found:
            return
        if cell.name in path:
            circle = " of ".join(repr(name) for name in (*path[path.index(cell.name) :], cell.name))
            raise ValueError(f"Teachers go in a circle: {circle}.")
        teacher = None
        if cell.teacher is not None:
            seeds = by_name[cell.teacher]
            if cell.seed not in seeds and len(seeds) > 1:
                raise ValueError(f"{cell.id!r} has no teacher of its seed, {cell.teacher!r} has {sorted(seeds)}.")
            teacher = seeds.get(cell.seed, next(iter(seeds.values())))
            visit(teacher, (*path, cell.name))
        found[cell.id] = cell, teacher.id if teacher else None

    for cell in cells:
        visit(cell, ())
    return list(found.values())


def _folder(cell: Cell, learned: list[str] | None, root: Path, any_code: bool) -> Path:
    """A fit's folder; it learned from the weights of another's, if from any."""
    said = training(contents(cell.asked))
    key = key_of([said, cell.seed, learned])
    return _place(root, key, code_key([*TRAINING, *class_paths(said)]), any_code)


def _judging(name: str, cell: Cell, checkpoint: str, root: Path, any_code: bool) -> Path:
    # A test's settings are those of the fit's own config, with the judging's behind them.
    own = judged(contents(cell.asked))
    said = contents(cell.judgings[name])
    key = key_of([own, said, checkpoint])
    return _place(root, f"{name}-{key}", code_key([*EVALUATION, *class_paths(own + said)]), any_code)


def _place(root: Path, key: str, code: str, any_code: bool) -> Path:
    own = root / f"{key}-{code}"
    others = [] if own.exists() or not any_code else [path for path in root.glob(f"{key}-*") if path.is_dir()]
    return max(others, key=lambda path: path.stat().st_mtime, default=own)


def _groups(cells: Mapping[str, Planned], size: int, indexes: Path) -> Iterator[Group]:
    """Cells of one level of teachers and students, in parts of the size asked for; of many small ones at least two."""
    levels: dict[int, list[str]] = {}
    depth: dict[str, int] = {}
    for id, planned in cells.items():
        depth[id] = 0 if planned.teacher is None else depth[planned.teacher] + 1
        levels.setdefault(depth[id], []).append(id)
    home: dict[str, str] = {}
    for level, ids in levels.items():
        count = max(-(-len(ids) // size), min(2, len(ids)))
        for number in range(count):
            part = ids[len(ids) * number // count : len(ids) * (number + 1) // count]
            name = f"group_{level}_{number}"
            home |= dict.fromkeys(part, name)
            needs = sorted({home[teacher] for id in part if (teacher := cells[id].teacher)})
            places = [[str(cells[id].folder), *map(str, cells[id].judgings.values())] for id in part]
            yield Group(name, tuple(part), tuple(needs), indexes / f"{name}-{key_of(places)}.json")


def finished(cells: Iterable[Planned]) -> int:
    return sum(planned.done for planned in cells)
