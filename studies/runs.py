"""What studies share: fits that print nothing, their weights and figures, processes side by side, tables."""

import argparse
import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from rich import get_console
from rich.progress import track
from rich.table import Table
from scipy.special import stdtrit

if TYPE_CHECKING:
    from main import CLI

Result = TypeVar("Result")

UNASKED = ("--interpret.images", "0")  # a study looks at its networks itself


def parser_of(study: str, doc: str | None, seeds: int) -> argparse.ArgumentParser:
    """The command line of a study: how many seeds, how many processes, and where the runs are kept."""
    # What is no option of the study may be one of main.py: none is abbreviated.
    parser = argparse.ArgumentParser(prog=f"python -m studies.{study}", description=doc, allow_abbrev=False)
    parser.add_argument("--seeds", type=positive, default=seeds, help=f"how many seeds, from 0 (default {seeds})")
    parser.add_argument("--jobs", type=positive, default=1, help="how many processes train side by side (default 1)")
    runs = Path("runs") / study
    parser.add_argument("--runs", type=Path, default=runs, help=f"where the runs are kept (default {runs})")
    return parser


def positive(text: str) -> int:
    """An integer of at least 1, for a parser."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def existing(text: str) -> Path:
    """A folder that exists, for a parser."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must name a folder of images, there is none at {text}")
    return Path(text)


@contextmanager
def printing_to(log: Path) -> Iterator[None]:
    """Adds to a file all that this process, and processes that it starts, would print."""
    log.parent.mkdir(parents=True, exist_ok=True)
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


def fit(words: Sequence[str], name: str, runs: Path) -> "CLI":
    """Runs ``fit`` without W&B and without a word on the terminal: what it prints is kept in ``RUNS/NAME.log``.

    Forty tables and progress notes would hide the one table that a study is for.

    Args:
        words: arguments behind ``fit``.
        name: the run's.
        runs: folder of runs.

    Raises:
        SystemExit: with one sentence, for what a person can mend.
    """
    from main import MENDABLE, main

    log = runs / f"{name}.log"
    try:
        with printing_to(log):
            return main(["fit", *words, "--runs", str(runs), "--name", name, "--wandb", "false", *UNASKED])
    except (*MENDABLE, SystemExit) as error:
        # The parser has said why on the terminal, which is the log.
        said = log.read_text().splitlines()[-1] if isinstance(error, SystemExit) else f"Error: {error}"
        raise SystemExit(f"{said} (in the run '{name}'; what it printed: {log})") from error


def last(folder: Path) -> Path:
    """A run's last weights."""
    return folder / "checkpoints" / "last.ckpt"


def read(folder: Path) -> dict[str, float]:
    """A run's shares, as fractions, by metric; the best weights' stand for the last's where both are the same."""
    with (folder / "results.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["checkpoint"] == "last")
    return {row["metric"]: float(row["value"]) for row in rows if not row["unit"]}


def side_by_side(
    task: Callable[..., Result], arguments: Sequence[tuple[object, ...]], jobs: int, title: str
) -> list[Result]:
    """What a task returns for each of its arguments, in their order; the first that fails ends them all.

    Args:
        task: a function of a module, run in processes of their own, with one thread each.
        arguments: of each call.
        jobs: how many processes.
        title: of the progress bar.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = [pool.submit(task, *each) for each in arguments]
        try:
            for done in track(as_completed(futures), title, len(futures)):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several seeds, standard deviation."""
    average = f"{np.mean(values):.{digits}f}"
    return f"{average} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else average


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean over the seeds, by Student's t; infinite for one seed."""
    n = len(values)
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.inf


def show(table: Table, path: Path) -> None:
    """Prints a table, and writes it as Markdown."""
    get_console().print(table)
    columns = [[str(cell).replace("|", r"\|") for cell in (column.header, *column.cells)] for column in table.columns]
    head, *rows = zip(*columns, strict=True)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"{table.title}", "", *lines]) + "\n")
