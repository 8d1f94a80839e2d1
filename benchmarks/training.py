"""How fast a training step is beside the released code's: ``python -m benchmarks.training [--quick]``.

Every method runs on the same networks and batch size as the code released with it computes its step (see
:mod:`benchmarks.released`), in turn within each round: process-CPU seconds at one thread, on a GPU the device's time
between events. Making the batch is part of a step on both sides. Peak memory is taken in a process of its own for each.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from benchmarks.arms import FACTS, METHODS, PAIRS, Options, Ours, Setting, released
from benchmarks.common import Run, consoles, header, in_turn, ratios, read, said, show, spread
from benchmarks.floor import Floor, rates

QUICK = ("--pairs", "cnn", "--batch", "4", "--rounds", "1", "--steps", "2", "--replays", "2")
REFERENCE = "released, 32"
PRECISIONS = ("32", "bf16")
FASTER = {("wrn", "ARD", "cpu"): 2.5, ("resnet18", "ARD", "cuda"): 3.0}  # times the released way, at the best precision
REPLAYED = 1.15  # Fast-ARD's seconds over plain KD's, at most
COLUMNS = ("method", "by, precision", "ms per step", "released's time over it", "target", "share of the floor", "peak")
LEGEND = (
    "Ms per step: median of the rounds. Released's time over it: in the same round, median (lowest–highest).",
    "Share of the floor: the multiply-adds that a step must do, at the rate of a large matrix product of the same "
    "precision, over the time that it takes.",
    "Peak: the most memory that steps take beyond what the process has before there are networks and data, in MiB.",
)


def peak(method: str, on: Setting, precision: str | None) -> float:
    """MiB that two steps take at most, beyond what this process has now; of the released way where no precision."""
    if on.device == "cpu":
        torch.set_num_threads(1)
        before = _status("VmRSS")
    run = released(method, on) if precision is None else Ours(method, on, Options(precision))
    run()  # what is made once, such as the optimiser's momentum, is there from now on
    if on.device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        run()
        return _status("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def peaks(method: str, on: Setting, say: Console) -> dict[str, float]:
    """:func:`peak` of everyone, each in a process of its own."""
    found = {}
    for precision in (None, *PRECISIONS):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # which may have processes of its own: a loader's
            found[named(precision)] = pool.submit(peak, method, on, precision).result()
        say.print(f"{method}: peak memory of {named(precision)} taken")
    return found


def named(precision: str | None) -> str:
    """Who steps, and at which precision; None for the released way."""
    return REFERENCE if precision is None else f"tempered, {precision}"


def measure(on: Setting, methods: Sequence[str], rounds: int, say: Console) -> dict[tuple[str, str], list[float]]:
    """Seconds of a step, round by round, by method and by who takes it."""
    runs: dict[str, Run] = {}
    for method in methods:
        runs[f"{method}|{REFERENCE}"] = released(method, on)
        for precision in PRECISIONS:
            runs[f"{method}|{named(precision)}"] = Ours(method, on, Options(precision))
    found = {}
    for name, taken in in_turn(runs, rounds, on.device, say, PAIRS[on.pair][0]).items():
        method, _, by = name.partition("|")
        found[method, by] = [each / (on.replays if method == "Fast-ARD" else 1) for each in taken]
    return found


def rows(
    on: Setting, taken: dict[tuple[str, str], list[float]], floor: Floor, memory: dict[str, dict[str, float]]
) -> list[list[str]]:
    """The cells, by :data:`COLUMNS`."""
    cells = []
    for (method, by), own in taken.items():
        precision = by.split(", ")[1]
        speed = target = ""
        if by != REFERENCE:
            times = ratios(taken[method, REFERENCE], own)
            speed, target = spread(times), reached(on, method, precision, median(times))
        least = floor.seconds(method, precision, on.batch, on.steps, on.replays)
        room = f"{memory[method][by]:,.0f}" if method in memory else ""
        share = f"{least / median(own):.0%}"
        cells.append([method, by, f"{1000 * median(own):,.1f}", speed, target, share, room])
    return cells


def reached(on: Setting, method: str, precision: str, times: float) -> str:
    """Whether the promise is kept; empty where there is none."""
    goal = FASTER.get((on.pair, method, on.device))
    if goal is None or precision != PRECISIONS[-1]:
        return ""
    return f"≥ {goal:g} {'met' if times >= goal else 'missed'}"


def replayed(taken: dict[tuple[str, str], list[float]]) -> list[str]:
    """A line for every one of ours: Fast-ARD beside plain KD, whose epochs have as many steps."""
    lines = []
    for precision in PRECISIONS:
        of = [taken.get((method, named(precision))) for method in ("Fast-ARD", "KD")]
        if of[0] and of[1]:
            times = ratios(of[0], of[1])
            verdict = "met" if median(times) <= REPLAYED else "missed"
            lines.append(f"Fast-ARD's time over KD's, {precision}: {spread(times)}; target ≤ {REPLAYED:g} {verdict}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), metavar="PAIR", help=", ".join(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="K, the steps of the attack")
    parser.add_argument("--replays", type=int, default=8, help="m of Fast-ARD")
    parser.add_argument("--memory", action="store_true", help="take the peak memory of ARD and KD, too")
    options = read(parser, arguments, QUICK)
    say, out = consoles()
    by_precision = rates(options.device)
    out.print("\n".join(header("benchmarks.training", said(arguments), options.device, ("torchvision",))))
    products = ", ".join(f"{rate / 1e9:,.0f}G at {name}" for name, rate in by_precision.items())
    out.print(f"A large matrix product, multiply-adds per second: {products}")
    for pair in options.pairs:
        on = Setting(pair, options.batch, options.steps, options.replays, options.device)
        teacher, student = on.networks()
        taken = measure(on, options.methods, options.rounds, say)
        watched = [method for method in ("ARD", "KD") if options.memory and method in options.methods]
        memory = {method: peaks(method, on, say) for method in watched}
        cells = rows(on, taken, Floor(student, teacher, FACTS.shape, by_precision), memory)
        show(out, f"{PAIRS[pair][0]}, batches of {on.batch}, K = {on.steps}, m = {on.replays}", COLUMNS, cells)
        out.print("\n".join(replayed(taken)))
    out.print("\n".join(LEGEND))


if __name__ == "__main__":
    main()
