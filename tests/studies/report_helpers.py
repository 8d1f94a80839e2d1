"""A study whose runs were never trained: what they would have left on disk is written as they would have written it."""

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import parquet

from attacks.records import Record, share, write_records
from studies.disk import FACTS, put
from studies.gather import Results
from studies.grid import read
from studies.plan import Plan, Planned, plan

RUNS = [
    {"name": "teacher", "seeds": [0]},
    {"name": "KD at {T}", "teacher": "teacher", "set": {"model.temperature": "{T}"}},
    {"name": "plain", "set": {"model.alpha": 0}},
]
ENVIRONMENT = {"python": "3.13.1", "processors": 4, "accelerators": [], "packages": {"torch": "2.11.0"}, "commit": None}


def grid(folder: Path, recipe: str = "paper", **said: Any) -> Plan:
    """A grid of three runs, two temperatures and three seeds, with further keys of its file."""
    config = folder / "any.yaml"
    config.write_text("{}\n")
    runs = [{"config": str(config), **run} for run in said.pop("runs", RUNS)]
    keys = {"title": "A study", "seeds": [0, 1, 2], "axes": {"T": [10, 40]}, "judge": {"attacks": {}}}
    file = folder / "made.yaml"
    file.write_text(yaml.safe_dump({**keys, **said, "runs": runs}, sort_keys=False))
    return plan(read(file, recipe), folder / "runs")


def finish(
    planned: Planned,
    right: Mapping[str, Sequence[bool]],
    records: Sequence[Record] = (),
    seconds: float = 60.0,
    environment: Mapping[str, Any] = ENVIRONMENT,
) -> None:
    """Leaves a finished fit and its finished test: on which images it is right, by attack, and other records."""
    planned.folder.mkdir(parents=True)
    put(planned.folder / FACTS, {"seconds": seconds, "parameters": 1234567, "multiply_adds": 80})
    for folder in (planned.folder, planned.judgings["attacks"]):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environment.json").write_text(json.dumps(environment))
    judged = planned.judgings["attacks"]
    put(judged / FACTS, {"seconds": seconds / 2})
    shares = [share(name, sum(each), len(each), 0.1) for name, each in right.items()]
    said = [Record(**{**vars(each), "model": "network", "checkpoint": "best"}) for each in (*shares, *records)]
    write_records(judged, said)
    if right:
        n = len(next(iter(right.values())))
        columns = {f"rank/{name}": [0 if one else 1 for one in each] for name, each in right.items()}
        (judged / "outcomes").mkdir()
        table = pa.table({"index": list(range(n)), "label": [0] * n, **columns})
        parquet.write_table(table, judged / "outcomes" / "network-best.parquet")


def fail(planned: Planned, said: str) -> None:
    """Leaves a failed fit."""
    planned.failed.parent.mkdir(parents=True, exist_ok=True)
    put(planned.failed, {"said": said, "log": f"{planned.folder}.log", "step": "fit"})


def first(count: int, n: int = 100) -> list[bool]:
    """Right on the first so many of n images."""
    return [number < count for number in range(n)]


def whole(folder: Path, **said: Any) -> Results:
    """The study, all of whose runs are finished: KD at 40 is the better, by 10 points and a little by seed."""
    found = grid(folder, **said)
    for planned in found.cells.values():
        base = {"teacher": 90, "plain": 50, "KD at 10": 60, "KD at 40": 70}[planned.cell.name]
        distance = Record("distance", base / 100, 50, base / 100 - 0.05, base / 100 + 0.02, 0.1, unit="l2")
        right = {"clean": first(95), "PGD-20": first(base + planned.cell.seed * (1 + base % 3))}
        finish(planned, right, [distance])
    return Results(found)


class Page(HTMLParser):
    """What a page holds: elements by tag, their ids, and the text of everything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]
