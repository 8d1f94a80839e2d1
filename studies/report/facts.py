"""What was run, on which machines, what it took, what failed, and what the attacks' diagnostics say."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from studies.disk import FACTS
from studies.gather import Ran, Results

WORST_FIRST = ("misleading", "suspicious", "skipped", "fine")
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Failure:
    """A run that failed or was skipped.

    Attributes:
        run: its name and seed.
        state: ``failed`` or ``skipped``.
        said: at which step, and the sentence.
        log: where to read on; empty for one that was skipped.
    """

    run: str
    state: str
    said: str
    log: str


@dataclass(frozen=True)
class Diagnosis:
    """What the diagnostics of an attack suite say of a run's robustness.

    Attributes:
        run: its name and seed.
        model: whose, and which weights.
        verdict: the worst of the findings'.
        findings: those that speak against the figures: check, what it saw, what to run next.
        checks: how many there were.
    """

    run: str
    model: str
    verdict: str
    findings: tuple[tuple[str, str, str], ...]
    checks: int


class Facts:
    """What a report says of a study's runs beside their figures.

    Args:
        results: the runs.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.study = results.study

    @property
    def states(self) -> Counter[str]:
        """How many runs are in which state."""
        return Counter(ran.state for ran in self.results.runs)

    @property
    def seeds(self) -> list[int]:
        return sorted({ran.seed for ran in self.results.runs})

    @property
    def judgings(self) -> list[str]:
        return list(dict.fromkeys(name for ran in self.results.runs for name in ran.planned.judgings))

    @cached_property
    def seconds(self) -> tuple[float, float]:
        """Wall-clock time of all fits and of all tests."""
        fits = sum(ran.facts.get("seconds", 0.0) for ran in self.results.runs)
        tests = [_json(folder / FACTS) for ran in self.results.runs for folder in _tests(ran)]
        return fits, sum((facts or {}).get("seconds", 0.0) for facts in tests)

    @cached_property
    def environment(self) -> dict[str, Counter[str]]:
        """Versions and machines: how many fits and tests ran under each value."""
        found: dict[str, Counter[str]] = {}
        for ran in self.results.runs:
            for folder in (ran.folder, *_tests(ran)):
                for key, value in _flat(_json(folder / ENVIRONMENT) or {}):
                    found.setdefault(key, Counter())[value] += 1
        return found

    @cached_property
    def failures(self) -> list[Failure]:
        """Runs that failed, then those that were skipped for a teacher's failure."""
        found = []
        for ran in self.results.runs:
            failure, teacher = ran.planned.failure, self.results.plan.skipped_for(ran.planned)
            if ran.state == "failed" and failure:
                found.append(
                    Failure(ran.planned.cell.id, "failed", f"{failure['step']}: {failure['said']}", failure["log"])
                )
            elif ran.state == "skipped" and teacher:
                found.append(Failure(ran.planned.cell.id, "skipped", f"its teacher {teacher.cell.id} failed", ""))
        return sorted(found, key=lambda each: each.state)

    @cached_property
    def missing(self) -> dict[str, list[int]]:
        """Runs that have not been run, by name, and their seeds."""
        found: dict[str, list[int]] = {}
        for ran in self.results.runs:
            if ran.state == "waiting":
                found.setdefault(ran.name, []).append(ran.seed)
        return found

    @cached_property
    def diagnoses(self) -> list[Diagnosis]:
        """What the diagnostics say, the worst first."""
        found = [
            _diagnosis(ran, path)
            for ran in self.results.runs
            for folder in _tests(ran)
            for path in sorted(folder.glob("diagnostics-*.json"))
        ]
        return sorted(found, key=lambda each: WORST_FIRST.index(each.verdict))


def _tests(ran: Ran) -> list[Path]:
    return [folder for folder in ran.planned.judgings.values() if folder.exists()]


def _diagnosis(ran: Ran, path: Path) -> Diagnosis:
    findings = json.loads(path.read_text())
    verdicts = {finding["verdict"] for finding in findings}
    worst = next((each for each in WORST_FIRST[:2] if each in verdicts), "fine" if "fine" in verdicts else "skipped")
    bad = tuple(
        (finding["check"], finding["saw"], finding["advice"])
        for finding in findings
        if finding["verdict"] in WORST_FIRST[:2]
    )
    return Diagnosis(ran.planned.cell.id, path.stem.removeprefix("diagnostics-"), worst, bad, len(findings))


def _flat(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """An environment's entries, packages by name."""
    for key, value in said.items():
        if isinstance(value, dict):
            yield from ((name, str(each)) for name, each in value.items())
        else:
            yield key, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
