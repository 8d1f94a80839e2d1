"""Figures of runs that were never trained, and what every figure of a report must be."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from figure_helpers import assert_placed, texts
from report_helpers import grid as grid
from study_helpers import checkpoint

from attacks.records import Record, write_records
from datamodules import Images
from studies.disk import FACTS, put
from studies.drawings import Drawn, draw
from studies.gather import Results
from studies.plan import Plan, Planned

RING = {"class_path": "datamodules.ToyRing", "init_args": {}}
DIGITS = {"class_path": "datamodules.Digits", "init_args": {}}


def record(metric: str, value: float, n: int = 100, **said: Any) -> Record:
    """A run's own figure, 2 points or 0.02 in doubt."""
    said = {"low": value - 0.02, "high": value + 0.02, "model": "student", "seconds": 0.1, **said}
    return Record(metric, value, n, **said)


def judged(planned: Planned, records: Sequence[Record], judge: str = "attacks") -> Path:
    """Leaves a finished fit, and a test with these records; the test's folder."""
    trained(planned)
    folder = planned.judgings[judge]
    folder.mkdir(parents=True)
    write_records(folder, records)
    return folder


def trained(planned: Planned, curves: Sequence[dict[str, float]] = ()) -> Path:
    """Leaves a finished fit with its metrics by epoch; its folder."""
    planned.folder.mkdir(parents=True, exist_ok=True)
    put(planned.folder / FACTS, {"seconds": 60.0, "parameters": 1_234_567, "multiply_adds": 80})
    with (planned.folder / "metrics.csv").open("w", newline="") as file:
        names = dict.fromkeys(key for row in curves for key in row)
        table = csv.DictWriter(file, ["epoch", "step", *names])
        table.writeheader()
        table.writerows({"epoch": number, "step": number, **row} for number, row in enumerate(curves))
    return planned.folder


def with_network(planned: Planned, data: Images, said: Any, seed: int, trained_at: float = 1.0) -> None:
    """Leaves a fit of a small network that was never trained, on a dataset of ours."""
    folder = trained(planned)
    (folder / "checkpoints").mkdir()
    checkpoint(folder / "checkpoints" / "last.ckpt", "MLP", data.facts, seed, trained_at, widths=[8])
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": said}))


def figures(found: Plan, **said: Any) -> list[Drawn]:
    """What an entry draws; every figure is readable, and is told in words."""
    made = draw(Results(found), said)
    for drawn in made:
        assert_placed(drawn.figure)
        assert min(text.get_fontsize() for text, _ in texts(drawn.figure)) >= 7
        width, height = drawn.figure.get_size_inches()
        assert width <= 6.5
        assert height <= 9.5
        assert len(drawn.alt) > 30
        assert "nan" not in drawn.alt + drawn.caption
    return made


def by_name(found: Plan, name: str) -> list[Planned]:
    """A run under all its seeds."""
    return [planned for planned in found.cells.values() if planned.cell.name == name]
