"""What the papers claim of the regimes, on scikit-learn's digits: ``python -m studies.claims``.

Every arm of a comparison has the same student, optimiser, schedule and number of updates; only what the claim is about
differs. Figures are those of the last weights, so that no choice of a checkpoint favours an arm. With ``--mnist
FOLDER`` (one folder of images per digit) the omitted digit is tried on MNIST too, by the configs of paper 003.
"""

import argparse
import contextlib
import csv
import io
import logging
import math
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from rich import get_console
from rich.progress import track
from rich.table import Table
from scipy.special import stdtrit

STEPS = 640
EPS = 0.1
PGD = "PGD"  # as the table calls it
MNIST_KD, MNIST_LABELS = "MNIST: KD without 2", "MNIST: labels without 2"
MARGIN = 0.5  # percentage points by which "no lower" and "no higher" may be off


def mlp() -> dict[str, Any]:
    return {"class_path": "networks.MLP", "init_args": {"widths": [128]}}


def wrn(width: int = 1) -> dict[str, Any]:
    return {"class_path": "networks.WideResNet", "init_args": {"depth": 10, "width": width}}


def threat() -> dict[str, Any]:
    return {"norm": "linf", "eps": 0.15}


def noise(kind: str, **options: Any) -> list[dict[str, Any]]:
    return [{"class_path": f"lightning_modules.{kind}", "init_args": options}]


@dataclass(frozen=True)
class Arm:
    """One way to train a network.

    Attributes:
        regime: the regime's name.
        options: its arguments, beside network, teacher, optimiser and schedule.
        network: the network's spec.
        teacher: name of the arm that teaches it.
        omit: the digit that is left out of its training set.
    """

    regime: str
    options: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=mlp)
    teacher: str | None = None
    omit: int | None = None


def arms() -> dict[str, Arm]:
    """All arms by name, teachers before their students."""
    attack = {"class_path": "attacks.PGD", "init_args": {"threat": threat(), "steps": 7}}
    free = {"threat": threat(), "replays": 4}
    hinton = {"alpha": 0.9, "temperature": 4.0}
    soft = {"alpha": 1.0, "temperature": 5.0}
    found = {
        "natural teacher": Arm("Teacher", network=wrn(2)),
        "robust teacher": Arm("AdversarialTraining", {"attack": attack}, wrn(2)),
        "plain": Arm("Teacher"),
        "KD from the robust teacher": Arm("Distillation", soft, teacher="robust teacher"),
        "KD from the natural teacher": Arm("Distillation", soft, teacher="natural teacher"),
        "free adversarial training": Arm("FreeAdversarialTraining", free),
        "Fast-ARD": Arm("FastARD", {**soft, **free}, teacher="robust teacher"),
        "label smoothing": Arm("Teacher", {"smoothing": 0.1}),
        "Tf-KD reg": Arm("TfKDReg", {"compat": "yuan2020"}),
        "Tf-KD self": Arm("TfKDSelf", teacher="plain"),
        "plain WRN": Arm("Teacher", network=wrn()),
        "self-distillation": Arm("SelfDistillation", network=wrn()),
        "KD": Arm("Distillation", hinton, teacher="natural teacher"),
        "labels without 3": Arm("Teacher", omit=3),
        "KD without 3": Arm("Distillation", {"alpha": 1.0, "temperature": 10.0}, teacher="natural teacher", omit=3),
    }
    for sigma in (0.1, 0.2, 0.4):
        disturbed = {"noise": noise("InputNoise", sigma=sigma)}
        found[f"noise {sigma} alone"] = Arm("Teacher", disturbed)
        found[f"soft randomization {sigma}"] = Arm("Distillation", {**hinton, **disturbed}, teacher="natural teacher")
    for p in (0.05, 0.25):
        corrupted = {"noise": noise("LabelCorruption", p=p)}
        found[f"corrupted teacher {p}"] = Arm("Teacher", corrupted, wrn(2))
        found[f"KD corrupted T {p}"] = Arm("Distillation", hinton, teacher=f"corrupted teacher {p}")
        found[f"KD corrupted TS {p}"] = Arm("Distillation", {**hinton, **corrupted}, teacher=f"corrupted teacher {p}")
        found[f"KD corrupted S {p}"] = Arm("Distillation", {**hinton, **corrupted}, teacher="natural teacher")
    return found


# What is claimed of a difference: on which side of which bound it lies.
SIDES = {"higher": (1, 0.0), "no lower": (1, -MARGIN), "no higher": (-1, MARGIN), "lower": (-1, 0.0)}


@dataclass(frozen=True)
class Claim:
    """That a figure of one arm is higher than, lower than, or at least about as high as that of another."""

    letter: str
    one: str
    claimed: str
    other: str
    metric: str = PGD

    def verdict(self, differences: Sequence[float]) -> str:
        """Whether the 95 % interval of the mean difference (Student's t over the seeds) lies on the claimed side."""
        side, bound = SIDES[self.claimed]
        n = len(differences)
        half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.inf
        ahead = side * (statistics.mean(differences) - bound)
        return "holds" if ahead > half else "does not hold" if ahead < -half else "undecided"


def claims(mnist: bool) -> list[Claim]:
    """The claims, in their order."""
    found = [
        Claim("a", "KD from the robust teacher", "higher", "KD from the natural teacher"),
        Claim("b", "free adversarial training", "higher", "plain"),
        Claim("b", "Fast-ARD", "higher", "plain"),
        *(Claim("c", f"soft randomization {s}", "higher", f"noise {s} alone") for s in (0.1, 0.2, 0.4)),
        *(Claim("d", name, "no lower", "plain", "clean") for name in ("label smoothing", "Tf-KD reg", "Tf-KD self")),
        Claim("d", "self-distillation", "no lower", "plain WRN", "clean"),
    ]
    for p in (0.05, 0.25):
        found += [
            Claim("e", f"corrupted teacher {p}", "higher", "natural teacher"),
            Claim("e", f"KD corrupted T {p}", "higher", "KD"),
            Claim("e", f"KD corrupted TS {p}", "higher", "KD"),
            Claim("e", f"KD corrupted S {p}", "no higher", "KD"),
            Claim("e", f"corrupted teacher {p}", "lower", "natural teacher", "confidence"),
        ]
    found.append(Claim("f", "KD without 3", "higher", "labels without 3", "clean only 3"))
    return [*found, Claim("f", MNIST_KD, "higher", MNIST_LABELS, "clean only 2")] if mnist else found


def config(arm: Arm, seed: int, teacher: Path | None) -> dict[str, Any]:
    """An arm as the command line's config."""
    model: dict[str, Any] = {
        "network": arm.network,
        **arm.options,
        "optimizer": {
            "class_path": "torch.optim.SGD",
            "init_args": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        },
        "scheduler": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": STEPS}},
        "scheduler_interval": "step",
    }
    if teacher is not None:
        model["teacher"] = {"checkpoint": str(teacher)}
    attack = {"class_path": "attacks.PGD", "init_args": {"steps": 20, "restarts": 5}}
    return {
        "seed_everything": seed,
        "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 64, "omit": arm.omit}},
        "model": {"class_path": f"lightning_modules.{arm.regime}", "init_args": model},
        "trainer": {
            "max_steps": STEPS,
            "max_epochs": -1,
            "accelerator": "cpu",
            "log_every_n_steps": 10,
            "enable_progress_bar": False,
        },
        "suite": {"threat": {"norm": "linf", "eps": EPS}, "attacks": [attack], "teacher": False},
    }


def fit(words: Sequence[str], name: str, seed: int, runs: Path) -> Path:
    """Runs ``fit`` without a word on the terminal; the run's folder."""
    from main import main

    about = ["--runs", str(runs), "--name", f"{name} seed {seed}".replace(":", ""), "--wandb", "false"]
    with contextlib.redirect_stdout(io.StringIO()):
        return main(["fit", *words, *about]).folder


def train(seed: int, runs: Path, mnist: Path | None) -> dict[str, dict[str, float]]:
    """Trains all arms with one seed; their figures in per cent, by arm and metric."""
    # Forty tables and progress notes would hide the one table that all this is for.
    logging.disable(logging.INFO)
    get_console().quiet = True
    figures: dict[str, dict[str, float]] = {}
    weights: dict[str, Path] = {}
    for name, arm in arms().items():
        text = yaml.safe_dump(config(arm, seed, weights.get(arm.teacher or "")))
        folder = fit(["--config", text], name, seed, runs)
        weights[name] = last(folder)
        figures[name] = {**read(folder / "results.csv"), "confidence": confidence(weights[name])}
    if mnist is not None:
        data = ["--data", "configs/data/mnist_folder.yaml", "--data.root", str(mnist)]
        common = [*data, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
        common += ["--seed_everything", str(seed), "--suite.attacks", "[]", "--suite.teacher", "false"]
        config_of = {name: ["--config", f"configs/{name}.yaml"] for name in ("teacher_mnist_mlp", "kd_mnist_omitted")}
        teacher = fit([*config_of["teacher_mnist_mlp"], *common], "MNIST: teacher", seed, runs)
        for name, words in {
            MNIST_KD: [*config_of["kd_mnist_omitted"], *common, "--model.teacher", f"{{checkpoint: {last(teacher)}}}"],
            MNIST_LABELS: [*config_of["teacher_mnist_mlp"], *common, "--model.network.widths", "[400]"],
        }.items():
            figures[name] = read(fit([*words, "--data.omit", "2"], name, seed, runs) / "results.csv")
    return figures


def last(folder: Path) -> Path:
    """A run's last weights."""
    return folder / "checkpoints" / "last.ckpt"


def read(path: Path) -> dict[str, float]:
    """A run's figures in per cent; the best weights' stand for the last's where both are the same."""
    with path.open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["checkpoint"] == "last")
    values = {row["metric"]: 100 * float(row["value"]) for row in rows}
    return {PGD if metric == "PGD-20 x5" else metric: value for metric, value in values.items()}


def confidence(checkpoint: Path) -> float:
    """Mean largest probability on the test images, in per cent."""
    import torch

    from datamodules import Digits
    from networks.checkpoint import load_network

    with torch.no_grad():
        logits = load_network(checkpoint).network(Digits().batch("test").x)
    return 100 * float(logits.softmax(1).amax(1).mean())


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def rows(figures: Sequence[dict[str, dict[str, float]]]) -> list[list[str]]:
    """One row for each claim; differences are taken seed by seed."""
    found = []
    for claim in claims(MNIST_KD in figures[0]):
        one, other = ([run[name][claim.metric] for run in figures] for name in (claim.one, claim.other))
        differences = [a - b for a, b in zip(one, other, strict=True)]
        cells = [claim.letter, f"{claim.one}: {spread(one)}", f"{claim.other}: {spread(other)}", claim.metric]
        found.append([*cells, spread(differences), claim.claimed, claim.verdict(differences)])
    return found


HEAD = ("", "of", "against", "figure, %", "difference", "claimed", "verdict")


def run(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.claims", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--jobs", type=int, default=1, help="how many seeds are trained side by side")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"), help="where the runs are kept")
    parser.add_argument("--mnist", type=Path, help="folder with a folder of MNIST's images for every digit")
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.mnist is not None and not options.mnist.is_dir():
        parser.error(f"--mnist must name a folder of images, there is none at {options.mnist}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        jobs = {pool.submit(train, seed, options.runs, options.mnist): seed for seed in range(options.seeds)}
        title = f"Training {len(arms())} networks with each of {options.seeds} seeds"
        done = {jobs[job]: job.result() for job in track(as_completed(jobs), title, len(jobs))}
    found = rows([done[seed] for seed in sorted(done)])
    title = f"Claims on Digits, {options.seeds} seeds, {STEPS} updates; PGD-20 with 5 starts at linf {EPS}"
    table = Table(*HEAD, title=title)
    for cells in found:
        table.add_row(*cells)
    get_console().print(table)
    markdown = "\n".join(f"| {' | '.join(cells)} |" for cells in [list(HEAD), ["---"] * len(HEAD), *found])
    path = options.runs / "claims.md"
    path.write_text(markdown + "\n")
    print(f"The same as Markdown: {path}", file=sys.stderr)


if __name__ == "__main__":
    run()
