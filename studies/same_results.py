"""Does what makes a step fast change what is learnt? On digits: ``python -m studies.same_results``.

The same student is trained by ARD from the same robust teacher, with the same seeds, plainly (float32, the network
itself attacked, rows before columns before channels) and with each thing of ``docs/speed.md`` that a fit may do.
Differences are paired by seed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from rich.table import Table

from studies.arms import STEPS, Arm, config, pgd, threat, wrn
from studies.runs import fit, half_width, last, parser_of, read, show, side_by_side, spread

SUITE = {
    "threat": threat(),
    "attacks": [{"class_path": "attacks.PGD", "init_args": {"steps": 20, "restarts": 5}}],
    "teacher": False,
}
METRICS = {"clean": "clean", "PGD-20 x5": f"PGD-20 x5 at linf {threat()['eps']}"}
PLAIN = "plain"
OFF: dict[str, object] = {"folding": False, "channels_last": False}
# By name, what is otherwise in the regime, and further words of ``fit``.
WAYS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    PLAIN: (OFF, ()),
    "default": ({}, ()),
    "bf16-mixed": ({}, ("--trainer.precision", "bf16-mixed")),
    "teacher's answers cached": ({"cache": True}, ()),
}


def train(seed: int, runs: Path) -> dict[str, dict[str, float]]:
    """Trains the teacher, plainly, and the student in every way, with one seed; accuracies in per cent."""

    def trained(arm: Arm, name: str, teacher: Path | None, words: Sequence[str] = ()) -> Path:
        text = yaml.safe_dump(config(arm, seed, teacher, SUITE))
        return fit(["--config", text, *words], f"{name} seed {seed}", runs).folder

    teacher = last(trained(Arm("AdversarialTraining", {"attack": pgd(), **OFF}, wrn(2)), "teacher", None))
    student = Arm("ARD", {"alpha": 1.0, "temperature": 5.0, "attack": pgd()}, wrn())
    found = {}
    for name, (options, words) in WAYS.items():
        figures = read(trained(replace(student, options=student.options | options), name, teacher, words))
        found[name] = {metric: 100 * figures[metric] for metric in METRICS}
    return found


def rows(figures: Sequence[dict[str, dict[str, float]]]) -> list[list[str]]:
    """One row for each way: accuracies, and their differences to the plain way's with 95 % intervals."""
    found = []
    for name in WAYS:
        cells = [name]
        for metric in METRICS:
            values, plain = ([run[way][metric] for run in figures] for way in (name, PLAIN))
            differences = np.subtract(values, plain).tolist()
            cells += [
                spread(values),
                "" if name == PLAIN else f"{np.mean(differences):+.1f} ± {half_width(differences):.1f}",
            ]
        found.append(cells)
    return found


def run(arguments: Sequence[str] | None = None) -> None:
    options = parser_of("same_results", __doc__, seeds=3).parse_args(arguments)
    title = f"Training {len(WAYS) + 1} networks with each of {options.seeds} seeds"
    figures = side_by_side(train, [(seed, options.runs) for seed in range(options.seeds)], options.jobs, title)
    head = [cell for name in METRICS.values() for cell in (f"{name}, %", "difference, 95 %")]
    table = Table("", *head, title=f"ARD on Digits, {options.seeds} seeds, {STEPS} updates")
    for cells in rows(figures):
        table.add_row(*cells)
    show(table, options.runs / "same_results.md")


if __name__ == "__main__":
    run()
