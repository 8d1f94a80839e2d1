"""Runs the cells of one group in one process: ``python -m studies.worker PLAN GROUP``.

Each cell is an ordinary ``fit`` and then an ordinary ``test`` for each of its judgings, run by the same ``main`` as a
person's. A fit works in a folder beside its place and is renamed into it when it is complete; so is a test. A worker
that is killed loses at most what it was at: a fit goes on from its last epoch, a test from its last finished attack.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import yaml
from filelock import FileLock

from lightning_modules.on_demand import COMPLETE, LOCK, MAIN, RUN_FOLDER, checkpoint_in
from networks.checkpoint import load_network
from networks.counts import multiply_adds, parameters
from studies.contents import JUDGING
from studies.disk import FACTS, WANDB, lock_of, log_of, partial, put, running_lock_of

UNASKED = ("--interpret.images", "0")  # unless a judging asks for it
TRAINED_ONLY = ("--trainer.limit_test_batches", "0", *UNASKED)  # judged afterwards, by tests of their own
STOPPED = 143  # the status of a fit that was sent SIGTERM
JUDGED = ("--trainer.limit_test_batches", "1.0", *UNASKED)
INTERRUPTED = Event()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C, which is remembered."""
    INTERRUPTED.set()
    signal.default_int_handler(number, frame)


def main(plan: Path, group: str) -> int:
    """Sees to every cell of a group and writes its index; the number of cells that failed or were skipped."""
    said = json.loads(plan.read_text())
    index, ids = next((Path(each["index"]), each["cells"]) for each in said["groups"] if each["name"] == group)
    states = {}
    for id in ids:
        states[id] = run(said["cells"][id], said["study"])
        print(f"{id}: {states[id]}", flush=True)
    put(index, states)
    return sum(state != "done" for state in states.values())


def run(job: dict[str, Any], study: str) -> str:
    """Fits and judges a cell unless that has been done: ``done``, ``failed`` or ``skipped``."""
    folder = Path(job["folder"])
    working, log = partial(folder), log_of(folder)
    failed = log.with_suffix(".failed.json")
    for parent in (folder.parent, log.parent):
        parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_of(folder)):  # another study may have the same cell
        with FileLock(running_lock_of(folder)):
            pass  # a process whose worker was killed may still be at it
        if job["teacher"] and not Path(job["teacher"]).exists():
            return "skipped"
        failed.unlink(missing_ok=True)
        step = "fit"
        try:
            if not folder.exists():
                _named(job)
                _fit(job, study, working, folder)
            for step, judging in job["judgings"].items():
                if not Path(judging["folder"]).exists():
                    _named(job, step)
                    _test(judging, folder, job)
        except (Exception, SystemExit) as error:
            # Lightning ends a fit that Ctrl-C stops with an ordinary status.
            if INTERRUPTED.is_set() or getattr(error, "code", None) == STOPPED:
                raise  # by whoever started this: no fault of the cell, which goes on another time
            # One cell's fault is no other's; what it was is kept, told by `run` and `status`, and shown in the report.
            put(failed, {"said": _sentence(error, log), "log": str(log), "step": step})
            with log.open("a") as file:
                traceback.print_exc(file=file)
            return "failed"
    return "done"


def _named(job: dict[str, Any], judging: str = "") -> None:
    """Tells W&B what the next run is called, and of which kind it is."""
    called = f"{job['name']} #{job['seed']}"
    os.environ |= {
        "WANDB_NAME": f"{called}, {judging}" if judging else called,
        "WANDB_JOB_TYPE": f"test {judging}" if judging else "fit",
    }


def _fit(job: dict[str, Any], study: str, working: Path, folder: Path) -> None:
    """Trains, in the folder's partial, from its last epoch where it has one, and renames it when it is complete."""
    words = ["fit", *job["words"], "--seed_everything", str(job["seed"]), *TRAINED_ONLY]
    if job["teacher"]:
        words += ["--model.teacher.checkpoint", str(_weights(Path(job["teacher"]), job["checkpoint"]))]
    last = working / "checkpoints" / "last.ckpt"
    resumed = last.exists()
    if resumed:
        words += ["--ckpt_path", str(last)]
    working.mkdir(exist_ok=True)
    began = time.monotonic()
    if not (working / COMPLETE).exists():
        _main(words, working, folder, job["alone"])
    took = {"seconds": time.monotonic() - began}
    facts = {"name": job["name"], "seed": job["seed"], "axes": job["axes"], "study": study, "words": job["words"]}
    put(working / FACTS, facts | took | {"resumed": resumed, "host": platform.node()} | _size(checkpoint_in(working)))
    os.rename(working, folder)


def _test(judging: dict[str, Any], fit: Path, job: dict[str, Any]) -> None:
    """Judges a fit's weights, in a partial of its own, and renames it when it is complete."""
    folder = Path(judging["folder"])
    working = partial(folder)
    if working.exists():
        shutil.rmtree(working)  # of a test that was stopped; what its attacks had finished lies beside it
    working.mkdir(parents=True)
    weights = _weights(fit, job["checkpoint"])
    # The fit may have been made for another study, whose suite is not this one's.
    trained = yaml.safe_load((fit / "config.yaml").read_text())
    trained = {key: value for key, value in trained.items() if key not in JUDGING}
    words = ["test", "--config", yaml.safe_dump(trained), *job["judged"], "--ckpt_path", str(weights)]
    began = time.monotonic()
    _main([*words, *JUDGED, *judging["words"]], working, fit, job["alone"])
    took = {"seconds": time.monotonic() - began}
    put(working / FACTS, took | {"words": judging["words"], "checkpoint": weights.stem})
    os.rename(working, folder)


def _weights(fit: Path, checkpoint: str) -> Path:
    """The weights of a fit that a study goes by."""
    return fit / "checkpoints" / "last.ckpt" if checkpoint == "last" else checkpoint_in(fit)


def _main(words: Sequence[str], working: Path, cell: Path, alone: bool) -> None:
    """The command line, told its run's folder, with all that it prints in a file.

    Args:
        words: behind ``main.py``.
        working: the run's folder.
        cell: the folder of the fit that it is, or is a test of.
        alone: in a process of its own, which several devices need and which frees what it held.
    """
    wandb = "true" if os.environ.get(WANDB) else "false"
    log = log_of(cell)
    words = [*words, "--wandb", wandb, "--trainer.enable_progress_bar", "false"]
    os.environ[RUN_FOLDER] = str(working)
    try:
        if alone:
            more = {LOCK: str(running_lock_of(cell)), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            with log.open("a") as file:
                command = [sys.executable, str(MAIN), *words]
                done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, **more}, check=False)
            if done.returncode:
                raise SystemExit(done.returncode)
        else:
            from main import main

            with printing_to(log):
                main(words)
    finally:
        os.environ.pop(RUN_FOLDER, None)


@contextmanager
def printing_to(log: Path) -> Iterator[None]:
    """Adds to a file all that this process, and processes that it starts, would print."""
    with log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        kept = [(number, os.dup(number)) for number in (1, 2)]  # what a teacher's process writes to
        try:
            for number, _ in kept:
                os.dup2(file.fileno(), number)
            yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


def _size(checkpoint: Path) -> dict[str, int]:
    """How large the network is, and what one image costs it."""
    loaded = load_network(checkpoint)
    assert loaded.facts is not None  # a run of ours says what it was trained for
    work = multiply_adds(loaded.network, loaded.facts.shape)
    return {"parameters": parameters(loaded.network), "multiply_adds": work}


def _sentence(error: BaseException, log: Path) -> str:
    """What went wrong; of a command line that ended itself, the last thing that it printed."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, int) and error.code < 0:
            return f"Its process was killed by {signal.Signals(-error.code).name}, often for want of memory."
        said = [line.strip() for line in log.read_text().splitlines() if line.strip()]
        return said[-1].removeprefix("Error: ") if said else f"It ended with status {error.code}."
    return str(error).strip() or type(error).__name__


if __name__ == "__main__":
    sys.path.insert(0, str(MAIN.parent))  # before a person's own main.py
    parser = argparse.ArgumentParser(prog="python -m studies.worker", description="Runs one group of a study's cells.")
    parser.add_argument("plan", type=Path)
    parser.add_argument("group")
    arguments = parser.parse_args()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # what runs in the background ignores it
        signal.signal(signal.SIGINT, interrupt)
    main(arguments.plan, arguments.group)
    sys.exit()
