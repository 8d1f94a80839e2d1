"""Trains a teacher that a student names by its config, once, whole or not at all."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from pytorch_lightning.utilities import rank_zero_info

from lightning_modules.teachers import as_words

# What a student's command says of its teacher's training too: where it runs, and limits that make it a trial run.
SHARED = (
    "accelerator",
    "devices",
    "strategy",
    "fast_dev_run",
    "overfit_batches",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
)
# What does not change the weights of a trained teacher, and so is no part of its identity.
SHOWN = ("logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "default_root_dir", "profiler")
IRRELEVANT = ("name", "runs", "wandb", "suite", "interpret", "shift", "train_teacher", "ckpt_path", "config", "flavour")
# Variables by which launchers and W&B's agents tell a process its place; a teacher's fit is a run of its own.
LAUNCHERS = re.compile(
    r"(LOCAL_|GROUP_|NODE_|ROLE_)?RANK|(LOCAL_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(SLURM|TORCHELASTIC)_.*"
    r"|WANDB_(NAME|NOTES|JOB_TYPE|RUN_ID|RESUME|SWEEP_.*)"
)
# Told to a teacher's process: its run's folder, and the lock that it holds while it trains.
RUN_FOLDER = "TEMPERED_RUN_FOLDER"
LOCK = "TEMPERED_LOCK"
COMPLETE = ".complete"  # the last thing that a fit writes
MAIN = Path(__file__).parents[1] / "main.py"


Parse = Callable[[list[str]], dict[str, Any]]


def effective_config(parse: Parse, student: dict[str, Any]) -> dict[str, Any]:
    """The whole config of the teacher's fit: its file, on the student's data, under its limits, with its override.

    Args:
        parse: reads the arguments of ``fit`` into a plain, resolved config.
        student: the student's plain, resolved config.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file, or the override behind it, is no config of ``fit``.
    """
    teacher = student["model"]["init_args"]["teacher"]
    path = teacher["config"]
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no config {path} for the teacher, seen from {Path.cwd()}.")
    inherited = {key: student[key] for key in ("data", "runs", "wandb", "train_teacher")}
    inherited["trainer"] = {key: student["trainer"][key] for key in SHARED}
    override = as_words(teacher["override"])
    try:
        return parse(["--config", path, "--config", yaml.safe_dump(inherited), *override])
    except ValueError as error:
        behind = f", with the override {override[1]}" if override else ""
        raise ValueError(f"The teacher's config {path}{behind}, cannot be used: {error}") from error


def command(parse: Parse, student: dict[str, Any]) -> str:
    """The command that trains a student's teacher by hand: its file, what it has from its student, its override."""
    teacher = student["model"]["init_args"]["teacher"]
    own = parse(["--config", teacher["config"]])
    words = ["python", "main.py", "fit", "--config", teacher["config"]]
    if student["data"] != own["data"]:
        words += ["--data", json.dumps(student["data"])]
    for key in SHARED:
        if student["trainer"][key] != own["trainer"][key]:
            words += [f"--trainer.{key}", json.dumps(student["trainer"][key]).strip('"')]
    return shlex.join([*words, *as_words(teacher["override"])])


def name_of(config: dict[str, Any], path: str) -> str:
    """What a teacher is called: what its config says, which a flavour does, or its config's file."""
    return Path(config["name"]).name if config["name"] else Path(path).stem


def key_of(config: dict[str, Any]) -> str:
    """Hash of all that decides a teacher's weights, as 12 hexadecimal digits."""
    relevant = {key: value for key, value in config.items() if key not in IRRELEVANT}
    relevant["trainer"] = {key: value for key, value in config["trainer"].items() if key not in SHOWN}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()[:12]


def place(config: dict[str, Any], runs: Path, name: str) -> Path:
    """The folder of the teacher with this config; it exists once the teacher is complete."""
    return runs / "teachers" / f"{name}-{key_of(config)}"


def checkpoint_in(folder: Path) -> Path:
    """A run's best weights; the last ones where nothing was held out to choose by."""
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    return best if best.exists() else last


def train_once(config: dict[str, Any], runs: Path, name: str) -> Path:
    """The checkpoint of the teacher with this config, trained now unless it has been.

    It is trained by a ``fit`` of its own, in ``<runs>/teachers/.<name>-<key>.partial``, which becomes
    ``<runs>/teachers/<name>-<key>`` by one rename when the fit is complete. A lock lets one process train while others
    wait, and the fit holds one of its own, so that one whose student was killed is not joined by another. An
    interrupted fit goes on from its last checkpoint.

    Raises:
        ChildProcessError: where the teacher's fit fails; what it did is kept and gone on with next time.
    """
    final = place(config, runs, name)
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.parent / f".{final.name}.lock"):
        if not final.exists():
            partial = final.parent / f".{final.name}.partial"
            running = final.parent / f".{final.name}.running.lock"
            with FileLock(running):  # waits for the fit of a student that was killed
                partial.mkdir(exist_ok=True)
            if not (partial / COMPLETE).exists():
                _train(config, partial, running)
            partial.rename(final)
    rank_zero_info(f"Teacher: {checkpoint_in(final)}")
    return checkpoint_in(final)


def _train(config: dict[str, Any], partial: Path, running: Path) -> None:
    """One ``fit`` in a process of its own, from its last checkpoint where it has one."""
    effective = partial / "teacher.yaml"
    effective.write_text(yaml.safe_dump(config, sort_keys=False))
    words = [sys.executable, str(MAIN), "fit", "--config", str(effective)]
    last = partial / "checkpoints" / "last.ckpt"
    if last.exists():
        words += ["--ckpt_path", str(last)]
    rank_zero_info(f"Training the teacher first, in {partial}: {shlex.join(words)}")
    environment = {key: value for key, value in os.environ.items() if not LAUNCHERS.fullmatch(key)}
    environment |= {RUN_FOLDER: str(partial), LOCK: str(running)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(words, env=environment, check=False)
    if done.returncode != 0 or not (partial / COMPLETE).exists():
        raise ChildProcessError(
            f"The teacher's fit ended with exit status {done.returncode} before it was complete; what it did is kept "
            f"in {partial}, and the same command goes on from there."
        )
