"""The report of a study: its tables beside the papers', its claims put to the test, its figures, and how it was made.

:func:`write` makes ``report.html``, one file that needs nothing beside it, ``report.md`` with ``figures/``, and
``tables/*.csv``, from whatever runs there are.
"""

import csv
import io
import os
import re
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from studies import layout
from studies.drawings import draw
from studies.gather import Results
from studies.report.facts import Facts
from studies.report.page import Report, html, markdown
from studies.report.pictures import picture
from studies.report.tables import as_csv, shown
from studies.report.verdicts import judge

PAGE = "report.html"


def make(results: Results, command: str) -> Report:
    """Everything that a report says.

    Args:
        results: the study's runs, finished or not.
        command: what the report is made by.

    Raises:
        ValueError: for tables, claims or figures that the grid does not describe as it should.
    """
    study = results.study
    layouts = layout.tables(study)
    tables = [shown(each, results) for each in layouts if each.rows]
    drawn = [each for said in study.figures for each in draw(results, said)]
    pictures = [picture(each.figure, each.title, each.alt, each.caption) for each in drawn]
    return Report(
        Facts(results),
        command,
        datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        [judge(results, claim) for claim in layout.claims(study)],
        {f"tables/{_file(n, table.layout.title)}.csv": table for n, table in enumerate(tables, 1)},
        {f"figures/{_file(n, each.title)}.{each.kind}": each for n, each in enumerate(pictures, 1)},
        [each.title for each in layouts if not each.rows],
    )


def write(results: Results, command: str, folder: Path) -> Path:
    """Writes a study's report into a folder, every file whole or not at all; nothing else there is touched.

    Args:
        results: the study's runs, finished or not.
        command: what the report is made by, for the reader.
        folder: where the report is kept.

    Returns:
        The path of the page.

    Raises:
        ValueError: as :func:`make`.
    """
    report = make(results, command)
    files = {name: as_csv(table).encode() for name, table in report.tables.items()}
    files |= {name: each.content for name, each in report.pictures.items()}
    files |= {
        "claims.csv": _claims(report).encode(),
        "report.md": markdown(report).encode(),
        PAGE: html(report).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".new-") as new:
        for number, content in enumerate(files.values()):
            (Path(new) / str(number)).write_bytes(content)
        for number, name in enumerate(files):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            os.replace(Path(new) / str(number), path)
    return folder / PAGE


def _file(number: int, title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"{number:02d}-{words[:60].strip('-')}".strip("-")


def _claims(report: Report) -> str:
    """A line for each claim."""
    lines: list[list[object]] = [
        ["claim", "verdict", "one", "other", "metric", "claimed", "unit", "difference", "low", "high", "p", "n", "over"]
    ]
    for each in report.judged:
        claim, compared, found = each.claim, each.compared, each.compared.difference
        figures = [""] * 5 if found is None else [found.value, found.low, found.high, found.p, found.n]
        than = claim.other if claim.than is None else claim.than
        said = [claim.says, each.verdict, claim.one, than, claim.metric, claim.claimed, compared.unit.points]
        lines.append([*said, *figures, compared.by])
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue()
