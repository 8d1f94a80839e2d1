"""How fast the attacks are beside other implementations: ``python -m benchmarks.attacks [--quick]``.

Every row gives the same images, the same network and the same settings to our suite and to its peers, in turn within
each round, and takes process-CPU seconds at one thread (on a GPU: wall-clock time of the synchronised device). Images
are scikit-learn's digits, so nothing is downloaded; the networks are trained at the start, in about a minute.
"""

import argparse
import json
import logging
import platform
import shlex
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor

from attacks import Radius, Threat
from benchmarks.common import graphics, matmul_rate, processor, said
from benchmarks.opponents import GAMMA, OURS, PACKAGES, ROWS, Counted, Row, Run, Task, importable, ours
from benchmarks.subjects import Subject, subject

EPS = 0.1  # the radius that the network is trained at
VERDICTS = {"ball": "robust", "norm": "broken", "target": "led there"}
COLUMNS = ("by", "seconds", "times ours", "target", "reached", "passes", "floor")
LEGEND = (
    "Seconds: median over the rounds, the network's preparation and the verdict on every image included.",
    "Times ours: a peer's seconds over ours in the same round, median (lowest–highest).",
    "Reached: share of the images, median (lowest–highest over the rounds, whose seeds differ).",
    "Passes: forward + backward passes per image, without those that only judge. Floor: the seconds that the "
    "multiply-adds of these passes take at the rate of a large matrix product (share of the seconds).",
)


@dataclass
class Measured:
    """One opponent in one row, round by round.

    Attributes:
        attack: the row's name.
        by: who ran.
        goal: the promised ratio.
        images: how many.
        seconds: of each round.
        ratios: its seconds over ours in each round.
        share: of the images, those that stand (``ball``), or those that are broken or led to their target.
        size: mean l2 length (``norm``) or share of features changed (``target``) of the successes.
        forwards: forward passes per image; those that only judge are not counted.
        backwards: backward passes per image.
        floor: the seconds that their multiply-adds would take at the rate of a large matrix product.
    """

    attack: str
    by: str
    goal: float | None
    images: int
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)
    forwards: list[float] = field(default_factory=list)
    backwards: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        """What the table says of it, by :data:`COLUMNS`."""
        ratio = target = ""
        if self.by != OURS:
            ratio = f"{median(self.ratios):.2f} ({min(self.ratios):.2f}–{max(self.ratios):.2f})"
            if self.goal is not None:
                target = f"≥ {self.goal:g} {'met' if median(self.ratios) >= self.goal else 'missed'}"
        judged = ROWS[self.attack].judged
        reached = f"{median(self.share):.1%} {VERDICTS[judged]}"
        if min(self.share) < max(self.share):
            reached += f" ({min(self.share):.1%}–{max(self.share):.1%})"
        if judged != "ball":
            size = median(self.size)
            reached += f", l2 {size:.2f}" if judged == "norm" else f", {size:.1%} of features"
        passes = f"{median(self.forwards):,.0f} + {median(self.backwards):,.0f}"
        floor = f"{median(self.floor):.2f} s ({sum(self.floor) / sum(self.seconds):.0%})"
        return [self.by, f"{median(self.seconds):.2f}", ratio, target, reached, passes, floor]


def clock(device: str) -> float:
    """Process-CPU seconds, or on a GPU wall-clock seconds after all that was asked of it is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def success(row: Row, task: Task, x_adv: Tensor) -> Tensor:
    """Which images an opponent has beaten: bool (n,)."""
    with torch.no_grad():
        prediction = task.model.model(x_adv).argmax(1)
    if row.judged == "target":
        changed = (x_adv != task.x).flatten(1).sum(1)  # ART changes a pair more than it is allowed
        return (prediction == task.target) & (changed <= GAMMA * task.x[0].numel() + 0.5)
    broken = prediction != task.y
    return broken & task.threat.holds(x_adv, task.x) if row.judged == "ball" else broken


@dataclass(frozen=True)
class Bench:
    """What all rows have in common.

    Attributes:
        device: ``cpu`` or ``cuda``.
        frozen: the networks' parameters require no gradient.
        threat: the radius.
        rate: multiply-adds per second of a large matrix product.
        installed: the peers that can be imported.
        say: where progress is told.
    """

    device: str
    frozen: bool
    threat: Threat
    rate: float
    installed: set[str]
    say: Console


def measure(name: str, on: Subject, images: int, rounds: int, bench: Bench) -> list[Measured]:
    """Runs a row: in every round ours and each peer that is installed, one after another."""
    row = ROWS[name]
    runs: dict[str, Run] = {OURS: lambda task: ours(task, row.ours(task))}
    runs |= {peer: known.run for peer, known in row.peers.items() if peer in bench.installed}
    goals = {peer: known.goal for peer, known in row.peers.items()}
    measured: dict[str, Measured] = {}
    for number in range(rounds):
        chosen = torch.ones_like(on.y, dtype=torch.bool)
        if row.judged == "target":  # one class a round, so that the next class is one target for all
            chosen = on.y == number % 10
        x, y = on.x[chosen][:images], on.y[chosen][:images]
        for by, run in runs.items():
            task = Task(Counted(on.network).eval(), x, y, bench.threat, number)
            torch.manual_seed(number)
            np.random.seed(number)  # noqa: NPY002 - ART draws from the global generator
            began = clock(bench.device)
            x_adv = run(task).detach()
            if by != OURS:  # our suite has judged its images already
                success(row, task, x_adv)
            seconds = clock(bench.device) - began
            found = measured.setdefault(by, Measured(name, by, goals.get(by), len(x)))
            found.seconds.append(seconds)
            found.ratios.append(seconds / measured[OURS].seconds[-1])
            beaten = success(row, task, x_adv)
            found.share.append(float((~beaten if row.judged == "ball" else beaten).float().mean()))
            delta = (x_adv - x)[beaten].flatten(1)
            lengths = (delta != 0).float().mean(1) if row.judged == "target" else delta.norm(dim=1)
            found.size.append(float(lengths.mean()) if len(lengths) else 0.0)
            found.forwards.append(task.model.forwards / len(x))
            found.backwards.append(task.model.backwards / len(x))
            found.floor.append((task.model.forwards + task.model.backwards) * on.cost / bench.rate)
            bench.say.print(f"{name}, round {number + 1} of {rounds}: {by} {seconds:.2f} s")
    return list(measured.values())


def header(
    arguments: Sequence[str] | None, bench: Bench, rounds: dict[str, int], subjects: Sequence[Subject]
) -> list[str]:
    """Where, when and with what it was measured, line by line."""
    where = f"{processor()}, {torch.get_num_threads()} thread, process-CPU seconds"
    if bench.device != "cpu":
        where = f"{graphics()}, wall-clock seconds of the synchronised device"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for name, (package, _) in PACKAGES.items():
        try:
            versions.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{name} not installed")
    counts = ", ".join(f"{name} {count}" for name, count in rounds.items())
    grads = "require no gradient" if bench.frozen else "require gradients, as training leaves them"
    return [
        f"{where}, float32; a large matrix product: {bench.rate / 1e9:.1f}G multiply-adds/s",
        ", ".join(versions),
        *(each.about for each in subjects),
        f"Threat {bench.threat}; rounds: {counts}; the networks' parameters {grads}",
        f"{datetime.now(UTC):%Y-%m-%d}: {shlex.join(['python', '-m', 'benchmarks.attacks', *said(arguments)])}",
    ]


def sections(results: Sequence[Measured]) -> dict[str, list[list[str]]]:
    """The results' cells by the title of their attack."""
    titles: dict[str, list[list[str]]] = {}
    for each in results:
        title = f"{each.attack}: {ROWS[each.attack].setting}; {each.images} images"
        titles.setdefault(title, []).append(each.cells())
    return titles


def markdown(lines: Sequence[str], results: Sequence[Measured]) -> str:
    """The header as a list and the results as one table."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for title, cells in sections(results).items():
        rows += [[f"**{title}**", *[""] * (len(COLUMNS) - 1)], *cells]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return "".join(f"- {line}\n" for line in lines) + f"\n{table}\n" + "\n".join(LEGEND) + "\n"


def show(lines: Sequence[str], results: Sequence[Measured]) -> None:
    """The same on the terminal."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print("\n".join(lines))
    console.width = max(console.width, 110)  # a narrower table cannot be read; a narrow terminal wraps its lines
    for title, cells in sections(results).items():
        table = Table(*COLUMNS, title=title, title_justify="left", box=SIMPLE_HEAD)
        for row in cells:
            table.add_row(*row)
        console.print(table, soft_wrap=False)
    console.print("\n".join(LEGEND))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds: a few minutes")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, help="rounds of every row; by default fewer for those that take long")
    parser.add_argument("--eps", type=float, default=EPS, help="the linf radius, in units of the box [0, 1]")
    parser.add_argument("--out", type=Path, help="JSON file for every figure of every round")
    parser.add_argument("--markdown", type=Path, help="file for the table as Markdown")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--frozen",
        action="store_true",
        help="attack a network whose parameters require no gradient, which spares peers that compute it anyway",
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU.")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1.")
    warnings.filterwarnings("ignore")  # peers warn of their own calls; ours are shown by the tests
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    installed = importable(say)
    with threadpool_limits(1):
        bench = Bench(
            options.device,
            options.frozen,
            Threat("linf", Radius(options.eps)),
            matmul_rate(options.device),
            installed,
            say,
        )
        subjects: dict[str, Subject] = {}
        results: list[Measured] = []
        rounds = {name: options.rounds or ROWS[name].rounds[options.quick] for name in options.only}
        for name in options.only:
            kind = "cnn" if ROWS[name].judged == "target" else "wrn"
            if kind not in subjects:
                say.print("Training a network …")
                subjects[kind] = subject(kind, bench.device, bench.frozen)
                say.print(subjects[kind].about)
            results += measure(name, subjects[kind], ROWS[name].images[options.quick], rounds[name], bench)
        lines = header(arguments, bench, rounds, list(subjects.values()))
    show(lines, results)
    if options.out:
        options.out.write_text(json.dumps({"header": lines, "results": [asdict(each) for each in results]}, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(lines, results))


if __name__ == "__main__":
    main()
