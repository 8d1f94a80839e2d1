"""What a person is told of a plan: its size, what is there, what failed, about how long the rest takes."""

import statistics
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from filelock import FileLock, Timeout
from rich import get_console
from rich.markup import escape
from rich.table import Table

from studies.disk import FACTS, get, lock_of, running_lock_of
from studies.plan import Plan, Planned

STATES = ("done", "running", "failed", "skipped", "waiting")


def show_plan(plan: Plan) -> None:
    """Prints the graph's size, the runs that are missing and an estimate of their time."""
    study, cells = plan.study, plan.cells.values()
    missing = [planned for planned in cells if not planned.done]
    fits = sum(not planned.trained for planned in cells)
    tests = sum(not folder.exists() for planned in cells for folder in planned.judgings.values())
    groups = sum(not all(plan.cells[id].done for id in group.cells) for group in plan.groups)
    _say(f"{study.title} ({study.name}, recipe {study.recipe}; {study.source})")
    if study.note:
        _say(f"Recipe {study.recipe}: {study.note}")
    _say(f"{len(cells)} runs in {len(plan.groups)} jobs; {len(cells) - len(missing)} complete.")
    if not missing:
        return
    _say(f"To do: {fits} fits and {tests} tests of {len(missing)} runs, in {groups} jobs.")
    seconds, unknown = estimate(missing, plan.runs / "studies" / "cells")
    if unknown < len(missing):
        like = "those that finished runs are like" if unknown else "all of it, by finished runs like these"
        _say(f"About {clock(seconds)} of one job's time for {like}.")
    if unknown:
        _say(f"No run like {unknown} of them is complete: how long those take is not known yet.")
    get_console().print(outline(missing))


def estimate(missing: list[Planned], cells: Path) -> tuple[float, int]:
    """Seconds that runs will take, and how many of them nothing is known of.

    A run is taken to last as long as the finished ones of its name, under whichever seed or code, or else of its
    configs; a test as long as those of its judging's name on such a run.
    """
    fits: dict[object, list[float]] = {}
    tests: dict[object, list[float]] = {}
    for path in cells.glob(f"*/{FACTS}"):
        facts = get(path)
        kinds = (facts["name"], configs(facts["words"]))
        for kind in () if facts["resumed"] else kinds:  # of a resumed fit only the end was timed
            fits.setdefault(kind, []).append(facts["seconds"])
        for judged in path.parent.glob(f"judgings/*/{FACTS}"):
            took = get(judged)["seconds"]
            for kind in kinds:
                tests.setdefault((kind, judged.parent.name.rsplit("-", 2)[0]), []).append(took)
    total, unknown = 0.0, 0
    for planned in missing:
        kinds = (planned.cell.name, configs(planned.cell.asked.words()))
        wanted = [] if planned.trained else [next((fits[kind] for kind in kinds if kind in fits), None)]
        for name, folder in planned.judgings.items():
            if not folder.exists():
                wanted.append(next((tests[kind, name] for kind in kinds if (kind, name) in tests), None))
        known = [statistics.mean(each) for each in wanted if each]
        total += sum(known)
        unknown += len(known) < len(wanted)
    return total, unknown


def configs(words: list[str]) -> tuple[str, ...]:
    """The config files among a run's words."""
    return tuple(value for option, value in pairwise(words) if option == "--config")


def outline(missing: list[Planned]) -> Table:
    """The runs by name, with the seeds that are missing."""
    table = Table("run", "seeds", "fit", "tests", title="Missing")
    seeds: dict[str, list[Planned]] = {}
    for planned in missing:
        seeds.setdefault(planned.cell.name, []).append(planned)
    for name, runs in seeds.items():
        fits = sum(not planned.trained for planned in runs)
        tests = [judging for judging, folder in runs[0].judgings.items() if not folder.exists()]
        table.add_row(escape(name), ", ".join(str(run.cell.seed) for run in runs), str(fits or ""), ", ".join(tests))
    return table


def show_status(plan: Plan) -> int:
    """Prints how many runs are in which state, and what is known of those that are neither done nor waiting."""
    states = {id: state(plan, planned) for id, planned in plan.cells.items()}
    counts = Counter(states.values())
    _say(f"{plan.study.name}: " + ", ".join(f"{counts[each]} {each}" for each in STATES if counts[each]))
    running = [id for id, each in states.items() if each == "running"]
    if running:
        _say(f"Running: {'; '.join(running)}")
    _failures(plan, states)
    return 1 if counts["failed"] else 0


def show_outcome(plan: Plan, snakemake: int) -> int:
    """Prints which runs failed or are missing after a run; 1 where there are any.

    Args:
        plan: the study and its places.
        snakemake: the status that Snakemake ended with.
    """
    states = {id: state(plan, planned) for id, planned in plan.cells.items()}
    counts = Counter(states.values())
    if counts["done"] == len(states):
        return 0
    _failures(plan, states)
    rest = counts["waiting"] + counts["running"]
    log = plan.folder / "logs" / "snakemake.log"
    if rest and snakemake and log.exists():
        said = [line for line in log.read_text().splitlines() if "rror" in line] or ["it does not say why"]
        _say(f"Snakemake ended with status {snakemake}: {said[-1].strip()} (log: {log})")
    if rest:
        _say(f"{rest} runs have not been run.")
        for group in plan.groups:
            log = plan.folder / "logs" / f"{group.name}.log"
            if not group.index.exists() and log.exists():
                said = log.read_text().strip().splitlines() or ["it said nothing"]
                _say(f"ended {group.name}: {said[-1]} (log: {log})", "red")
    _say("The same command tries again what failed and goes on with the rest.")
    return 1


def state(plan: Plan, planned: Planned) -> str:
    """One of :data:`STATES`; a run that waits and whose lock is held is running."""
    found = plan.state(planned)
    if found != "waiting":
        return found
    for lock in filter(Path.exists, (lock_of(planned.folder), running_lock_of(planned.folder))):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            return "running"
    return found


def _say(text: str, style: str | None = None) -> None:
    """Prints text as it is: brackets in it are nobody's markup."""
    get_console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)  # paths stay whole


def _failures(plan: Plan, states: Mapping[str, str]) -> None:
    """Prints what failed, at which step, with its log, and whose teacher is at fault for what was skipped."""
    for id, planned in plan.cells.items():
        failure, teacher = planned.failure, plan.skipped_for(planned)
        if states[id] == "failed" and failure:
            _say(f"failed {id}, {failure['step']}: {failure['said']} (log: {failure['log']})", "red")
        elif states[id] == "skipped" and teacher:
            _say(f"skipped {id}: its teacher {teacher.cell.id} failed", "yellow")


def clock(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
