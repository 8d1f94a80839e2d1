"""Does a student look where its teacher looks because of its teacher? ``python -m studies.adherence [--mnist FOLDER]``.

A student that is distilled from a teacher is compared with a blind one: of the same architecture and initial weights,
by the same optimiser, schedule and number of updates, trained on labels alone. Both are held against the teacher, above
the same controls. Of a robust teacher the blind student is trained against the same attack as the distilled one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.table import Table

import networks
from attacks.records import Record, share, write_records
from interpret import MEASURES, GradCAM, IntegratedGradients, Saliency, SmoothGrad, adherence, agreement
from lightning_modules.run_folder import new_folder
from networks.checkpoint import load_network
from studies.arms import STEPS, Arm, cnn, config, pgd, threat, wrn
from studies.pairs import batches
from studies.runs import existing, fit, half_width, last, parser_of, show, side_by_side, spread

IMAGES = 360  # test images, as many as the digits have
SUITE = {"threat": threat(), "attacks": [], "teacher": False}
TEACHER, STUDENT, BLIND = "teacher", "student", "blind"
AGREEMENT = ("accuracy", "agreement", "KL to teacher")


@dataclass(frozen=True)
class Trio:
    """A teacher, its student, and a student that never hears of it.

    Attributes:
        arms: by role.
        words: further arguments of ``fit``, the same for all.
    """

    arms: dict[str, Arm]
    words: tuple[str, ...] = ()


def trios(mnist: Path | None) -> dict[str, Trio]:
    """The comparisons by name."""
    attack: dict[str, Any] = {"attack": pgd()}
    robust = {
        TEACHER: Arm("AdversarialTraining", attack, wrn(2)),
        STUDENT: Arm("ARD", {"alpha": 1.0, "temperature": 5.0, **attack}, wrn(), teacher=TEACHER),
        BLIND: Arm("AdversarialTraining", attack, wrn()),
    }
    found = {"KD on Digits": Trio(natural(wrn(2), wrn())), "ARD on Digits": Trio(robust)}
    if mnist is not None:
        data = ("--data", "configs/data/mnist_folder.yaml", "--data.root", str(mnist), "--data.batch_size", "64")
        # At the digits' rate of 0.05 students without batch normalisation may die of the term's t^2.
        slower = ("--model.optimizer.lr", "0.01")
        found["KD on MNIST"] = Trio(natural(cnn(), cnn(reduced=True)), data + slower)
    return found


def natural(large: dict[str, Any], small: dict[str, Any]) -> dict[str, Arm]:
    """A teacher that learns from labels, and its student by Hinton's distillation."""
    hinton = Arm("Distillation", {"alpha": 0.9, "temperature": 4.0}, small, teacher=TEACHER)
    return {TEACHER: Arm("Teacher", network=large), STUDENT: hinton, BLIND: Arm("Teacher", network=small)}


def train(name: str, trio: Trio, seed: int, runs: Path) -> list[Record]:
    """Trains a trio with one seed; what is found of both students, whose role is the records' ``model``."""
    weights: dict[str, Path] = {}
    for role, arm in trio.arms.items():
        text = yaml.safe_dump(config(arm, seed, weights.get(arm.teacher or ""), SUITE))
        cli = fit(["--config", text, *trio.words], f"{name} {role} seed {seed}", runs)
        weights[role] = last(cli.folder)
    return compare(cli.datamodule, weights, trio.arms[BLIND].network, seed)


def compare(data: Any, weights: dict[str, Path], network: dict[str, Any], seed: int) -> list[Record]:
    """Adherence to the teacher and agreement with it, of the student and of the blind one.

    Args:
        data: the dataset.
        weights: checkpoints by role.
        network: the students' spec, for an untrained one.
        seed: of the untrained student's weights and of the bootstrap.
    """
    loaded = {role: load_network(path).network for role, path in weights.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = getattr(networks, network["class_path"].rpartition(".")[2])(data.facts, **network["init_args"])
    index = data.split_index("test")
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:IMAGES]]
    images = batches(data, index)
    methods = [Saliency(), IntegratedGradients(), GradCAM(), SmoothGrad()]
    records = []
    for role in (STUDENT, BLIND):
        pair = loaded[role], loaded[TEACHER]
        found = [*adherence(*pair, images, methods, untrained=untrained, seed=seed).records()]
        answers = agreement(*pair, images)
        right = answers.student.correct
        found += [share("accuracy", int(right.sum()), len(right), 0.0), *answers.records()]
        records += [replace(each, model=role, checkpoint=str(weights[role])) for each in found if each.model != TEACHER]
    return records


@dataclass(frozen=True)
class Compared:
    """A figure of both students, seed by seed.

    Attributes:
        student: of the distilled one.
        blind: of the other.
    """

    student: list[float]
    blind: list[float]

    @property
    def differences(self) -> list[float]:
        return [a - b for a, b in zip(self.student, self.blind, strict=True)]

    @property
    def verdict(self) -> str:
        """On which side of 0 the 95 % interval of the mean difference lies, by Student's t over the seeds."""
        average, half = np.mean(self.differences), half_width(self.differences)
        return "higher" if average > half else "lower" if average < -half else "not decided"

    def cells(self, unit: float, digits: int) -> list[str]:
        """Student, blind student, difference with its interval, verdict."""
        figures = [spread([unit * v for v in values], digits) for values in (self.student, self.blind)]
        average, half = unit * np.mean(self.differences), unit * half_width(self.differences)
        interval = f"{average:.{digits}f} [{average - half:.{digits}f}, {average + half:.{digits}f}]"
        return [*figures, interval, self.verdict]


def skills(runs: Sequence[Sequence[Record]]) -> dict[tuple[str, str], tuple[Compared, list[float]]]:
    """The skill of both students above one floor, the highest control of either, and the floor, seed by seed.

    Args:
        runs: the records of every seed.

    Returns:
        By attribution method and measure.
    """
    found = {}
    # What is defined for no image, as the maps of a dead network, has no record.
    values = [defaultdict(lambda: nan, {(r.model, r.metric): r.value for r in records}) for records in runs]
    methods = dict.fromkeys(metric.split("/")[1] for _, metric in values[0] if metric.startswith("adherence/"))
    for method in methods:
        for measure in MEASURES:
            name = f"adherence/{method}/{measure}"
            floors = [max(run[role, f"{name}/floor"] for role in (STUDENT, BLIND)) for run in values]
            pairs = {
                role: [(run[role, name] - floor) / (1 - floor) for run, floor in zip(values, floors, strict=True)]
                for role in (STUDENT, BLIND)
            }
            found[method, measure] = Compared(pairs[STUDENT], pairs[BLIND]), floors
    return found


def table(name: str, runs: Sequence[Sequence[Record]]) -> Table:
    """A row for each figure: skill by method and measure, then what both students decide."""
    heads = ("", "", "floor", "student", "blind student", "difference [95 %]", "verdict")
    shown = Table(*heads, title=f"{name}: skill of adherence, and agreement with the teacher, {len(runs)} seeds")
    for (method, measure), (compared, floors) in skills(runs).items():
        shown.add_row(method, measure, spread(floors, 3), *compared.cells(1, 3))
    for metric in AGREEMENT:
        of = {
            role: [next(r.value for r in run if (r.model, r.metric) == (role, metric)) for run in runs]
            for role in (STUDENT, BLIND)
        }
        unit, digits, head = (1, 3, f"{metric}, nats") if metric.startswith("KL") else (100, 1, f"{metric}, %")
        shown.add_row("", head, "", *Compared(of[STUDENT], of[BLIND]).cells(unit, digits))
    return shown


def run(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("adherence", __doc__, seeds=3)
    parser.add_argument("--mnist", type=existing, help="folder with a folder of MNIST's images for every digit")
    options = parser.parse_args(arguments)
    compared = trios(options.mnist)
    tasks = [(name, trio, seed, options.runs) for seed in range(options.seeds) for name, trio in compared.items()]
    title = f"Training {len(tasks)} teachers and their students, {STEPS} updates each"
    found = side_by_side(train, tasks, options.jobs, title)
    folder = new_folder(options.runs, "tables", "fit")
    for name in compared:
        runs = [records for (own, *_), records in zip(tasks, found, strict=True) if own == name]
        write_records(folder / name, [record for records in runs for record in records])
        show(table(name, runs), folder / f"{name}.md")


if __name__ == "__main__":
    run()
