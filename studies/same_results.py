"""Does what makes a step fast change what is learnt? ``python -m studies.same_results [--cifar10 FOLDER]``.

The same student is trained by ARD from the same robust teacher, with the same seeds, plainly (float32, the network
itself attacked, rows before columns before channels) and with each thing of ``docs/speed.md`` that a fit may do.
Differences are paired by seed. What the teacher is trained by is the same for all, and so the fastest way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from rich.table import Table

from studies.arms import STEPS, Arm, config, pgd, threat, wrn
from studies.runs import existing, fit, half_width, last, parser_of, read, show, side_by_side, spread

SUITE = {
    "threat": threat(),
    "attacks": [{"class_path": "attacks.PGD", "init_args": {"steps": 20, "restarts": 5}}],
    "teacher": False,
}
METRICS = ("clean", "PGD-20 x5")
PLAIN = "plain"
LOW = ("--trainer.precision", "bf16-mixed")
# By name, what is otherwise in the regime, and further words of ``fit``.
WAYS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    PLAIN: ({"folding": False, "channels_last": False}, ()),
    "default": ({}, ()),
    "bf16-mixed": ({}, LOW),
    "teacher's answers cached": ({"cache": True}, ()),
}


@dataclass(frozen=True)
class Subject:
    """What is learnt.

    Attributes:
        eps: radius of the linf ball, in training and in the test.
        words: further words of ``fit``.
    """

    eps: str
    words: tuple[str, ...] = ()


def subjects(cifar10: Path | None) -> dict[str, Subject]:
    """The data sets by name; of CIFAR-10 no image is seen twice, and 1,000 are tested on."""
    found = {"Digits": Subject(str(threat()["eps"]))}
    if cifar10 is not None:
        data = ("--data", "configs/data/cifar10_folder.yaml", "--data.root", str(cifar10), "--data.batch_size", "32")
        found["CIFAR-10"] = Subject("8/255", (*data, "--model.attack.steps", "3", "--suite.images", "1000"))
    return found


def train(subject: Subject, seed: int, runs: Path) -> dict[str, dict[str, float]]:
    """Trains a teacher, and the student in every way, with one seed; accuracies in per cent.

    Args:
        subject: what they learn.
        seed: of weights, batches and noise.
        runs: folder of runs.
    """

    def trained(arm: Arm, name: str, teacher: Path | None, words: Sequence[str]) -> Path:
        text = yaml.safe_dump(config(arm, seed, teacher, SUITE))
        eps = [word for key in ("model.attack", "suite") for word in (f"--{key}.threat.eps", subject.eps)]
        return fit(["--config", text, *subject.words, *eps, *words], f"{name} seed {seed}", runs).folder

    teacher = last(trained(Arm("AdversarialTraining", {"attack": pgd()}, wrn(2)), "teacher", None, LOW))
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


def table(name: str, subject: Subject, figures: Sequence[dict[str, dict[str, float]]]) -> Table:
    """The rows below their heads."""
    clean, attacked = METRICS
    heads = (f"{clean}, %", f"{attacked} at linf {subject.eps}, %")
    columns = [cell for head in heads for cell in (head, "difference, 95 %")]
    shown = Table("", *columns, title=f"ARD on {name}, {len(figures)} seeds, {STEPS} updates")
    for cells in rows(figures):
        shown.add_row(*cells)
    return shown


def run(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("same_results", __doc__, seeds=3)
    parser.add_argument("--cifar10", type=existing, help="folder of CIFAR-10's images: train/CLASS/* and test/CLASS/*")
    options = parser.parse_args(arguments)
    asked = subjects(options.cifar10)
    tasks = [(subject, seed, options.runs / name) for seed in range(options.seeds) for name, subject in asked.items()]
    title = f"Training {len(WAYS) + 1} networks on each of {len(asked)} data sets with each of {options.seeds} seeds"
    found = side_by_side(train, tasks, options.jobs, title)
    for name, subject in asked.items():
        figures = [each for (own, *_), each in zip(tasks, found, strict=True) if own == subject]
        show(table(name, subject, figures), options.runs / f"{name}.md")


if __name__ == "__main__":
    run()
