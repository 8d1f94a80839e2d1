"""What training at a temperature does: ``python -m studies.temperatures --config FILE --temperatures 1 10 [WORDS]``.

For every T the config's teacher and its student are trained at T, from the same seed and on all training images, so
that the last weights are the only ones. Of both are shown, over T, how hard they decide, the amplitude of their
gradients, the gradient heat map of their layers and, of data in the plane, what they decide where. They are used at
T = 1, and looked at on test images that are drawn once. Words that are no options of the study go to ``main.py fit``,
for the student; its teacher shares its data, and what ``--both`` says.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from attacks.records import Record, write_records
from interpret import charts, hardness_table, sensitivity
from interpret.plane import decision_maps
from lightning_modules.run_folder import new_folder
from networks.checkpoint import load_network
from studies.pairs import ACCURACY, AMPLITUDE, HARD, TOP, Column, Pair, Plane, Setting, train
from studies.runs import parser_of, positive, show, side_by_side, spread

SIDES = ("teacher", "student")


def draw(pairs: dict[str, Pair], folder: Path, eps: float | None) -> None:
    """The figures and tables of one seed.

    Args:
        pairs: by their columns' titles.
        folder: where they are put.
        eps: radius of the boxes around the points of the plane; None for none.
    """
    figures = folder / "figures"
    for side in SIDES:
        networks = {title: pair.networks[side] for title, pair in pairs.items()}
        found = {title: network.amplitudes for title, network in networks.items()}
        charts.sensitivity_histogram(found, figures / f"amplitudes_{side}.png")
        charts.layer_heat_maps({t: network.heat for t, network in networks.items()}, figures / f"layers_{side}.png")
        table = sensitivity.table(found, f"Gradient amplitudes of the {side}, % of the images")
        show(table, folder / f"amplitudes_{side}.md")
    plane = next(iter(pairs.values())).plane
    if plane is not None:
        decisions(pairs, plane, folder, eps)


def decisions(pairs: dict[str, Pair], plane: Plane, folder: Path, eps: float | None) -> None:
    """The decision maps and, beside them, how hard the decisions are."""
    rows = {side: {t: load_network(pair.networks[side].weights).network for t, pair in pairs.items()} for side in SIDES}
    points = torch.from_numpy(plane.points)
    path = folder / "figures" / "decisions.png"
    decision_maps(rows, plane.box, path, points=points, labels=plane.labels, names=plane.names, eps=eps)
    show(hardness_table(rows, points), folder / "hardness.md")


def summary(records: Sequence[Record], seeds: int) -> Table:
    """Hardness over the temperatures, means over the seeds; of the amplitudes the median in every seed."""
    columns = {ACCURACY: (100, "accuracy, %"), TOP: (1, TOP), HARD: (100, "p > 0.99, %")}
    heads = [head for _, head in columns.values()]
    table = Table(*("", "trained at"), *heads, f"{AMPLITUDE}, by seed", title=f"Used at T = 1; seeds: {seeds}")
    for model in dict.fromkeys(record.model for record in records):
        values: dict[str, list[float]] = {}
        for record in records:
            if record.model == model:
                values.setdefault(record.metric, []).append(record.value)
        shown = {name: [unit * value for value in values[name]] for name, (unit, _) in columns.items()}
        cells = [spread(of_seeds, 1 if columns[name][0] == 100 else 4) for name, of_seeds in shown.items()]
        each = [f"{value:.1e}" for value in values[AMPLITUDE]]
        table.add_row(*model.split(", ", 1), *cells, ", ".join(each))
    return table


def content(text: str) -> dict[str, Any]:
    """A config, from a file or as it stands, for a parser."""
    found = yaml.safe_load(Path(text).read_text() if Path(text).is_file() else text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"must be a config, a file or its content, got {text}")
    return found


def run(given: Sequence[str] | None = None) -> None:
    parser = parser_of("temperatures", __doc__, seeds=1)
    parser.add_argument("--config", required=True, help="config of a student that names its teacher's config")
    parser.add_argument("--temperatures", type=float, nargs="+", required=True, metavar="T", help="of the columns")
    parser.add_argument("--dropout", type=float, metavar="P", help="a first column for reference: T = 1, dropout P")
    parser.add_argument("--boxes", type=float, metavar="EPS", help="l-inf boxes around the points of the plane")
    parser.add_argument("--both", type=content, default={}, help="a config behind the teacher's and the student's")
    parser.add_argument("--images", type=positive, default=1000, help="test images to look at (default 1000)")
    options, words = parser.parse_known_args(given)
    columns = [Column(f"T = {t:g}", t) for t in dict.fromkeys(options.temperatures)]
    if options.dropout is not None:
        columns.insert(0, Column("T = 1, dropout", 1.0, options.dropout))
    setting = Setting(options.config, tuple(words), options.both, options.images, options.runs)
    tasks = [(column, seed, setting) for seed in range(options.seeds) for column in columns]
    pairs = side_by_side(train, tasks, options.jobs, f"Training {len(tasks)} teachers and their students")
    folder = new_folder(options.runs, Path(options.config).stem, "fit")
    records = []
    for seed in range(options.seeds):
        found = {column.title: pair for (column, own, _), pair in zip(tasks, pairs, strict=True) if own == seed}
        draw(found, folder / f"seed {seed}", options.boxes)
        for side in SIDES:
            for title, pair in found.items():
                records += pair.networks[side].records(f"{side}, {title}")
    write_records(folder, records)
    show(summary(records, options.seeds), folder / "summary.md")


if __name__ == "__main__":
    run()
