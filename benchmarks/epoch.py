"""What Lightning costs around a training step: ``python -m benchmarks.epoch [--quick]``.

Epochs through ``main.py``, with its logger and its progress bar, and as many steps of the same regime, optimiser and
data in a bare loop, in turn in one run. Both take process-CPU seconds at one thread, on a GPU seconds by the clock
until the device is done. A multilayer perceptron, whose step is short, shows what Lightning costs in milliseconds; a
WRN-16-2, with a WRN-40-2 as its teacher in ARD, which share of a step that is. Writing a checkpoint at an epoch's end
is not counted.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.arms import FACTS
from benchmarks.beside import Beside
from benchmarks.common import consoles, header, ratios, read, said, show, spread
from main import main as main_py

QUICK = ("--networks", "mlp", "--batch", "16", "--rounds", "1", "--steps", "2")
MLP = {"class_path": "networks.MLP", "init_args": {"widths": [64]}}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # student and teacher
    "mlp": (MLP, MLP),
    "wrn": (
        {"class_path": "networks.WideResNet", "init_args": {"depth": 16, "width": 2}},
        {"class_path": "networks.WideResNet", "init_args": {"depth": 40, "width": 2}},
    ),
}
THREAT = {"norm": "linf", "eps": "8/255"}
ATTACK = {"class_path": "attacks.PGD", "init_args": {"threat": THREAT, "steps": 10}}


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        regime: the regime's name.
        batch: images in a batch.
        goal: the share of a bare step that Lightning may take.
    """

    regime: str
    batch: int
    goal: float


TRAININGS = {"plain": Training("Teacher", 512, 0.15), "ARD": Training("ARD", 64, 0.05)}
COLUMNS = (
    "network",
    "training",
    "batch",
    "ms per step, bare",
    "through main.py",
    "its time over bare",
    "Lightning, ms",
    "target",
)
LEGEND = (
    "Ms per step: median of the epochs. Its time over bare: epoch by epoch, median (lowest–highest).",
    "Lightning, ms: what a step through main.py takes longer, median.",
)


def model(network: str, training: Training) -> dict[str, Any]:
    """A regime and its networks, as the command line's config; the teacher is untrained, which costs no less."""
    student, teacher = NETWORKS[network]
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}}
    given: dict[str, Any] = {"network": student, "optimizer": optimizer}
    if training.regime == "ARD":
        large = {**teacher, "init_args": {**teacher["init_args"], "facts": FACTS.to_dict()}}
        given |= {"teacher": {"module": large}, "alpha": 1.0, "temperature": 30.0, "attack": ATTACK}
    return {"class_path": f"lightning_modules.{training.regime}", "init_args": given}


def fit(network: str, training: Training, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds of a step, round by round: through ``main.py``, and bare. The first epoch of each is not counted."""
    data = {"count": options.steps * training.batch, "batch_size": training.batch}
    config = {
        "data": {"class_path": "benchmarks.beside.Drawn", "init_args": data},
        "model": model(network, training),
        "trainer": {
            "max_epochs": options.rounds + 1,
            "accelerator": "gpu" if options.device == "cuda" else "cpu",
            "precision": options.precision,
            "callbacks": [{"class_path": "benchmarks.beside.Beside"}],
        },
        # A fit ends with a test.
        "suite": {"threat": THREAT, "images": 8, "attacks": [{"class_path": "attacks.FGSM"}], "teacher": False},
        "interpret": {"images": 0},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "epoch.yaml"
        path.write_text(yaml.safe_dump(config))
        done = main_py(["fit", "--config", str(path), "--runs", folder, "--wandb", "false"])
    (beside,) = (each for each in done.trainer.callbacks if isinstance(each, Beside))  # type: ignore[attr-defined]
    through, bare = ([each / options.steps for each in taken[1:]] for taken in beside.taken)
    return through, bare


def cells(network: str, name: str, training: Training, through: Sequence[float], bare: Sequence[float]) -> list[str]:
    """A row, by :data:`COLUMNS`."""
    most = 1 + training.goal
    times = ratios(through, bare)
    verdict = "" if network == "mlp" else f"≤ {most:g} {'met' if median(times) <= most else 'missed'}"
    added = median(1000 * (one - other) for one, other in zip(through, bare, strict=True))
    mine = [f"{1000 * median(each):,.1f}" for each in (bare, through)]
    return [network, name, str(training.batch), *mine, spread(times), f"{added:.2f}", verdict]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), metavar="TRAINING")
    batches = ", ".join(f"{each.batch} of {name}" for name, each in TRAININGS.items())
    parser.add_argument("--batch", type=int, help=f"images in a batch (default {batches})")
    parser.add_argument("--rounds", type=int, default=5, help="epochs that count")
    parser.add_argument("--steps", type=int, default=10, help="in an epoch")
    parser.add_argument("--precision", choices=("32", "bf16-mixed"), default="32")
    options = read(parser, arguments, QUICK)
    _, out = consoles()
    clock = "by the clock until the device is done"
    lines = header("benchmarks.epoch", said(arguments), options.device, ("pytorch-lightning",), clock)
    rows = []
    for network in options.networks:
        for name in options.trainings:
            training = replace(TRAININGS[name], batch=options.batch or TRAININGS[name].batch)
            rows.append(cells(network, name, training, *fit(network, training, options)))
    out.print("\n".join(lines))
    show(out, f"Epochs of {options.steps} steps, precision {options.precision}", COLUMNS, rows)
    out.print("\n".join(LEGEND))


if __name__ == "__main__":
    main()
