"""What Lightning costs around a training step: ``python -m benchmarks.epoch [--quick]``.

Epochs through ``main.py``, with its logger and its progress bar, and as many steps of the same regime, optimiser and
data in a bare loop, in turn in one run. Both take process-CPU seconds at one thread, on a GPU seconds by the clock
until the device is done. A multilayer perceptron, whose step is short, shows what Lightning costs in milliseconds; a
convolutional network, which share of a step that is. Writing a checkpoint at an epoch's end is not counted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.beside import Beside
from benchmarks.common import consoles, header, ratios, read, said, show, spread
from main import main as main_py

QUICK = ("--networks", "mlp", "--batch", "16", "--rounds", "1", "--steps", "2")
NETWORKS = {
    "mlp": {"class_path": "networks.MLP", "init_args": {"widths": [64]}},
    "wrn": {"class_path": "networks.WideResNet", "init_args": {"depth": 16, "width": 2}},
}
THREAT = {"norm": "linf", "eps": "8/255"}
ATTACK = {"class_path": "attacks.PGD", "init_args": {"threat": THREAT, "steps": 10}}
REGIMES: dict[str, tuple[str, dict[str, Any], float]] = {  # and the share of a step that Lightning may take
    "plain": ("lightning_modules.Teacher", {}, 0.15),
    "PGD-10": ("lightning_modules.AdversarialTraining", {"attack": ATTACK}, 0.05),
}
COLUMNS = (
    "network",
    "training",
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


def fit(network: str, training: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds of a step, round by round: through ``main.py``, and bare. The first epoch of each is not counted."""
    regime, given, _ = REGIMES[training]
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}}
    data = {"count": options.steps * options.batch, "batch_size": options.batch}
    config = {
        "data": {"class_path": "benchmarks.beside.Drawn", "init_args": data},
        "model": {
            "class_path": regime,
            "init_args": {"network": NETWORKS[network], "optimizer": optimizer} | given,
        },
        "trainer": {
            "max_epochs": options.rounds + 1,
            "accelerator": "gpu" if options.device == "cuda" else "cpu",
            "precision": options.precision,
            "callbacks": [{"class_path": "benchmarks.beside.Beside"}],
        },
        "suite": {"threat": THREAT, "images": 8, "attacks": [{"class_path": "attacks.FGSM"}]},  # a fit ends with a test
        "interpret": {"images": 0},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "epoch.yaml"
        path.write_text(yaml.safe_dump(config))
        done = main_py(["fit", "--config", str(path), "--runs", folder, "--wandb", "false"])
    (beside,) = (each for each in done.trainer.callbacks if isinstance(each, Beside))  # type: ignore[attr-defined]
    through, bare = ([each / options.steps for each in taken[1:]] for taken in beside.taken)
    return through, bare


def cells(network: str, training: str, through: Sequence[float], bare: Sequence[float]) -> list[str]:
    """A row, by :data:`COLUMNS`."""
    goal = REGIMES[training][2]
    times = ratios(through, bare)
    verdict = "" if network == "mlp" else f"≤ {1 + goal:g} {'met' if median(times) <= 1 + goal else 'missed'}"
    added = median(1000 * (one - other) for one, other in zip(through, bare, strict=True))
    mine = [f"{1000 * median(each):,.1f}" for each in (bare, through)]
    return [network, training, *mine, spread(times), f"{added:.2f}", verdict]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=512, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="epochs that count")
    parser.add_argument("--steps", type=int, default=10, help="in an epoch")
    parser.add_argument("--precision", choices=("32", "bf16-mixed"), default="32")
    options = read(parser, arguments, QUICK)
    _, out = consoles()
    lines = header("benchmarks.epoch", said(arguments), options.device, ("pytorch-lightning",))
    fits = [(network, training) for network in options.networks for training in REGIMES]
    rows = [cells(network, training, *fit(network, training, options)) for network, training in fits]
    out.print("\n".join(lines))
    title = f"Batches of {options.batch}, epochs of {options.steps} steps, precision {options.precision}"
    show(out, title, COLUMNS, rows)
    out.print("\n".join(LEGEND))


if __name__ == "__main__":
    main()
