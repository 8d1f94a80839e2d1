"""What the tests of the command line share: tiny configs, a callback that stops a fit, and ways to run ``main.py``."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

from datamodules import Digits

ROOT = Path(__file__).parents[1]
QUIET = ["--wandb", "false", "--trainer.enable_progress_bar", "false"]
DDP = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]

NETWORK = {"class_path": "networks.MLP", "init_args": {"widths": [16]}}
ATTACK = {"class_path": "attacks.PGD", "init_args": {"threat": {"norm": "linf", "eps": 0.1}, "steps": 1}}
COMMON = {
    "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 64}},
    "trainer": {"max_epochs": 2, "limit_train_batches": 6, "log_every_n_steps": 2, "accelerator": "cpu"},
    "suite": {"threat": {"norm": "linf", "eps": 0.1}, "images": 20, "attacks": [{"class_path": "attacks.FGSM"}]},
    "interpret": {"images": 0},
}


def sgd(lr: float = 0.1) -> dict[str, Any]:
    return {"class_path": "torch.optim.SGD", "init_args": {"lr": lr, "momentum": 0.9}}


def teacher_config(lr: float = 0.1, **trainer: Any) -> dict[str, Any]:
    """A teacher of 12 steps; keywords go to the trainer."""
    model = {"class_path": "lightning_modules.Teacher", "init_args": {"network": NETWORK, "optimizer": sgd(lr)}}
    return COMMON | {"model": model, "trainer": COMMON["trainer"] | trainer}


def student_config(teacher: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    """An ARD student of 12 steps; keywords go to the trainer."""
    init = {"network": NETWORK, "attack": ATTACK, "optimizer": sgd(), "teacher": teacher}
    model = {"class_path": "lightning_modules.ARD", "init_args": {key: value for key, value in init.items() if value}}
    return COMMON | {"model": model, "trainer": COMMON["trainer"] | trainer}


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


class Stop(pl.Callback):
    """Sends this process a signal after a step, the first time only, as a person or a scheduler would."""

    def __init__(self, step: int, signal: int, marker: str) -> None:
        self.step = step
        self.signal = signal
        self.marker = Path(marker)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), self.signal)


def stopping(step: int, signal: int, marker: Path) -> list[dict[str, Any]]:
    init = {"step": step, "signal": int(signal), "marker": str(marker)}
    return [{"class_path": "main_helpers.Stop", "init_args": init}]


class WrongLabels(Digits):
    """Digits whose labels go up to 10, one more than its classes allow."""

    def load(self, train: bool):
        images, labels = super().load(train)
        return images, labels + 1


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def environment(**changes: str | None) -> dict[str, str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests"), **changes}
    return {key: value for key, value in env.items() if value is not None and key != "PL_GLOBAL_SEED"}


def _interruptible() -> None:
    """A shell's background jobs ignore SIGINT, and so would all that tests start among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*args: Any, **changes: str | None) -> subprocess.Popen[str]:
    """Starts ``python main.py`` in a process of its own."""
    command = [sys.executable, "main.py", *map(str, args), *QUIET]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(**changes), stdout=pipe, stderr=pipe, text=True, preexec_fn=_interruptible
    )


def process(*args: Any, timeout: float = 120, **changes: str | None) -> Ended:
    """Runs ``python main.py`` in a process of its own, with nobody there to answer a prompt."""
    command = [sys.executable, "main.py", *map(str, args)]
    done = subprocess.run(
        [*command, *QUIET[2:]],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
        preexec_fn=_interruptible,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs main.py as the interpreter would, ``__main__`` and exit status included, without a process of its own."""

    def run(*args: Any) -> Ended:
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, args), *QUIET])
        capsys.readouterr()
        status, message = 0, ""
        try:
            runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
        except SystemExit as end:  # anything else would be a traceback
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            message = end.code if isinstance(end.code, str) else ""
        out, err = capsys.readouterr()
        return Ended(status, out, err + message)

    return run


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def results(folder: Path) -> dict[tuple[str, str, str], tuple[float, int]]:
    """(model, checkpoint, metric) -> (value, n), after a check that the two files of results agree."""
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [{key: str(value) for key, value in line.items()} for line in lines] == rows
    return {(r["model"], r["checkpoint"], r["metric"]): (float(r["value"]), int(r["n"])) for r in rows}


def of(model: str, figures: dict[tuple[str, str, str], tuple[float, int]], checkpoint: str = "best") -> dict[str, Any]:
    return {metric: value for (m, c, metric), value in figures.items() if (m, c) == (model, checkpoint)}


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def same_weights(one: Path, other: Path) -> bool:
    a, b = checkpoint(one)["state_dict"], checkpoint(other)["state_dict"]
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def image_folder(root: Path, classes: int, size: int, channels: int = 3, train: int = 3, test: int = 1) -> Path:
    """Noise in ``root/{train,test}/<class>/*.png``."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (size, size, channels), dtype=np.uint8)
                Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / f"{number}.png")
    return root
