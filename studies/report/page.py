"""The report as one HTML file that needs nothing beside it, and as Markdown."""

import re
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from studies.report import words
from studies.report.facts import WORST_FIRST, Facts
from studies.report.forest import bars
from studies.report.pictures import Picture
from studies.report.tables import Shown
from studies.report.verdicts import Judged


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        facts: of the runs.
        command: that made it.
        when: it was made.
        judged: the claims.
        tables: with their figures, by the name of their file.
        pictures: by the name of their file.
        left_out: titles of the tables of which the recipe has no run.
    """

    facts: Facts
    command: str
    when: str
    judged: list[Judged]
    tables: dict[str, Shown]
    pictures: dict[str, Picture]
    left_out: list[str]


@dataclass(frozen=True)
class Section:
    """An entry of the table of contents, with its parts' places and titles."""

    id: str
    title: str
    parts: tuple[tuple[str, str], ...] = ()


def html(report: Report) -> str:
    """The page."""
    return _render("page.html.j2", report, True)


def markdown(report: Report) -> str:
    """The same in Markdown, with figures beside it."""
    text = re.sub(r"<(?=[a-zA-Z/!])", "&lt;", _render("page.md.j2", report, False))  # what would be read as HTML
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _render(name: str, report: Report, escape: bool) -> str:
    environment = Environment(
        loader=PackageLoader("studies.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "evidence": words.evidence,
        "metric": words.metric,
        "differences": words.differences,
        "cell": _cell,
    }
    return environment.get_template(name).render(_context(report))


def _cell(text: object) -> str:
    """A cell of a Markdown table."""
    return str(text).replace("|", r"\|").replace("\n", " ")


def _context(report: Report) -> dict[str, Any]:
    facts, judged = report.facts, report.judged
    tests = words.tests(judged)
    return {
        "study": facts.study,
        "facts": facts,
        "command": report.command,
        "when": report.when,
        "glance": words.glance(facts),
        "judged": list(zip(judged, bars(judged), strict=True)),
        "tally": words.tally([each.verdict for each in judged]),
        "how_judged": words.HOW_JUDGED,
        "tables": report.tables,
        "tests": tests,
        "test_heads": words.TEST_HEADS,
        "how_tested": words.HOW_TESTED,
        "pictures": report.pictures,
        "diagnosed": words.tally([each.verdict for each in facts.diagnoses], WORST_FIRST),
        "unfinished": words.unfinished(facts),
        "made": words.made(facts, report.left_out),
        "environment": words.environment(facts),
        "contents": _contents(report, bool(tests)),
    }


def _contents(report: Report, tested: bool) -> list[Section]:
    facts = report.facts
    tables = tuple((f"table-{n}", table.layout.title) for n, table in enumerate(report.tables.values(), 1))
    figures = tuple((f"figure-{n}", each.title) for n, each in enumerate(report.pictures.values(), 1) if each.title)
    sections = {
        Section("claims", "Claims"): bool(report.judged),
        Section("tables", "Tables", tables): bool(tables),
        Section("tests", "Tests of the differences"): tested,
        Section("figures", "Figures", figures): bool(report.pictures),
        Section("diagnostics", "Is the robustness real?"): bool(facts.diagnoses),
        Section("unfinished", "Runs that are not finished"): bool(words.unfinished(facts)),
        Section("made", "How it was made"): True,
    }
    return [section for section, there in sections.items() if there]
