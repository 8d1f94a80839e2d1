"""What the benchmarks of training share: clocks, rounds in which all take their turn, and tables."""

import argparse
import platform
import re
import resource
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Run = Callable[[], object]
WIDTH = 120  # of a table: a narrower one cannot be read


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.open():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def graphics(info: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The GPU, what drives it, and how it convolves in float32."""
    driver = re.search(r"\d+\.\d+(\.\d+)?", info.read_text()) if info.exists() else None
    versions = f"driver {driver[0] if driver else 'unknown'}, CUDA {torch.version.cuda}"
    tf32 = "in" if torch.backends.cudnn.allow_tf32 else "without"
    return f"{torch.cuda.get_device_name()}, {versions}, float32 convolutions {tf32} TF32"


def header(
    module: str, arguments: Sequence[str], device: str, packages: Sequence[str] = (), by: str = "by device events"
) -> list[str]:
    """Machine, clock (on a GPU ``by`` it), versions, date and command of a benchmark, line by line."""
    where = f"{processor()}, {torch.get_num_threads()} thread, process-CPU seconds"
    if device != "cpu":
        where = f"{graphics()}, seconds {by}"
    versions = [f"{package} {version(package)}" for package in ("torch", *packages)]
    command = shlex.join(["python", "-m", module, *arguments])
    return [where, ", ".join([f"Python {platform.python_version()}", *versions]), f"{datetime.now(UTC):%F}: {command}"]


def cpu_seconds() -> float:
    """Seconds of processor time that this process has used and the processes that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds(run: Run, device: str) -> float:
    """What a run takes: process-CPU seconds, or on a GPU the device's time between two of its events."""
    if device == "cpu":
        began = cpu_seconds()
        run()
        return cpu_seconds() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def in_turn(runs: dict[str, Run], rounds: int, device: str, say: Console, title: str) -> dict[str, list[float]]:
    """Seconds of every run in every round. All take their turn within a round; one before the first is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = seconds(run, device)
            if number:
                taken[name].append(took)
        say.print(f"{title}: round {number} of {rounds} done")  # a bar that moves would be counted
    return taken


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """``one / other``, round by round."""
    return [a / b for a, b in zip(one, other, strict=True)]


def spread(values: Sequence[float]) -> str:
    """``median (lowest–highest)``."""
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def matmul_rate(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds per second of a large matrix product, the best of ten; on a GPU in TF32 where convolutions are."""
    n = 1024 if device == "cpu" else 8192
    a = torch.rand(n, n, device=device, dtype=dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return n**3 / min(seconds(lambda: a @ a, device) for _ in range(10))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def consoles() -> tuple[Console, Console]:
    """Where progress is told, and where results are."""
    console = partial(Console, highlight=False, markup=False, soft_wrap=True)
    return console(stderr=True), console()


def show(out: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    out.width = max(out.width, WIDTH)
    out.print(table, soft_wrap=False)


def read(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, quick: Sequence[str] = ()
) -> argparse.Namespace:
    """The options of a benchmark of training, checked; torch keeps to one thread from here on.

    Args:
        parser: of all options but ``--device`` and ``--quick``.
        arguments: the words of the command line; None takes those of this process.
        quick: what ``--quick`` stands for; where there is nothing, there is no such option.
    """
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    if quick:
        says = f"the same as {' '.join(quick)}, for a look or a test"
        parser.add_argument("--quick", action="store_true", help=says)
    options = parser.parse_args(arguments)
    if quick and options.quick:
        options = parser.parse_args([*quick, *(word for word in said(arguments) if word != "--quick")])
    counts = {name: getattr(options, name, None) for name in ("batch", "rounds", "steps", "replays")}
    if small := [f"--{name}" for name, count in counts.items() if count is not None and count < 1]:
        parser.error(f"{', '.join(small)} must be at least 1.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU.")
    torch.set_num_threads(1)
    return options


def said(arguments: Sequence[str] | None) -> list[str]:
    """The words of a command line."""
    return list(sys.argv[1:] if arguments is None else arguments)
