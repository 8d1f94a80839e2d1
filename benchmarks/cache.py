"""What a cache of the teacher's answers saves: ``python -m benchmarks.cache``.

Two students take the same steps on the same batches, in turn within each round: one asks its teacher, the other finds
its teacher's answers in the cache, where they were put before. The cache is as a first run leaves it, with other
answers missing, so every step also looks whether its own are there. Images are uniform noise, whose values cost nothing
more or less than photographs' do.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import median
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.arms import PAIRS, Options, Setting, batches, regime, take_step
from benchmarks.common import Run, consoles, header, in_turn, ratios, read, said, seconds, show, spread
from benchmarks.pipeline import Noise
from datamodules import Batch
from lightning_modules import Distiller
from lightning_modules.answers_cache import AnswersCache, open_cache

METHODS = ("KD", "ARD")
GOALS = {"KD": 2.0}  # times as fast
OF_CIFAR = 50_000  # images
COLUMNS = ("method", "asked, s", "cached, s", "asked over cached", "teacher's share of a step")
LEGEND = (
    "Seconds of a step, its batch included: the median of the rounds.",
    "Asked over cached, teacher's share (1 - cached / asked): in the same round, median (lowest–highest).",
)


def student(method: str, on: Setting) -> Distiller:
    """A student as the configs have it, in float32."""
    built = regime(method, on, Options())
    assert isinstance(built, Distiller)
    return built


def opened(of: Distiller, on: Setting) -> AnswersCache:
    """The cache of the answers of a student's teacher on a setting's images."""
    data = Noise(on.data(), on.batch)
    data.setup()
    return open_cache(of.teacher, data, "32-true", torch.device(on.device))


def steps(of: Distiller, shown: Iterator[Batch]) -> Run:
    """What takes a student's next step."""
    optimizer = of.configure_optimizers()
    return lambda: take_step(of, optimizer, next(shown), "32")


def measure(method: str, on: Setting, rounds: int, say: Console) -> dict[str, list[float]]:
    """Seconds of a step in every round, by whether the teacher is asked or its answers are in the cache."""
    asking, hearing = student(method, on), student(method, on)
    hearing.answers = opened(hearing, on)
    hearing.answers.refresh(hearing.device)
    for batch in islice(batches(on, 1), rounds + 1):  # one before the first is not counted
        hearing.answers(batch)
    hearing.answers.refresh(hearing.device)
    runs = {"asked": steps(asking, batches(on, 1)), "cached": steps(hearing, batches(on, 1))}
    return in_turn(runs, rounds, on.device, say, method)


def cells(method: str, taken: dict[str, list[float]]) -> list[str]:
    """A row, by :data:`COLUMNS`."""
    times = ratios(taken["asked"], taken["cached"])
    goal = GOALS.get(method)
    target = f"; target ≥ {goal:g}: {'met' if median(times) >= goal else 'missed'}" if goal else ""
    took = [f"{median(taken[name]):.3f}" for name in ("asked", "cached")]
    return [method, *took, spread(times) + target, spread([1 - 1 / each for each in times])]


def opening(on: Setting) -> str:
    """How long it takes to open the cache of CIFAR-10's number of images, for the first time and again."""
    of, whole = student("KD", on), replace(on, images=OF_CIFAR)
    made, again = (seconds(partial(opened, of, whole), "cpu") for _ in range(2))
    return f"Opening the cache of {OF_CIFAR:,} images: {made:.2f} CPU seconds when it is made, {again:.2f} again"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["wrn"], metavar="PAIR", help=", ".join(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="K, the steps of ARD's attack")
    options = read(parser, arguments)
    say, out = consoles()
    out.print("\n".join(header("benchmarks.cache", said(arguments), options.device)))
    with TemporaryDirectory() as folder:
        os.environ["TEMPERED_CACHE"] = folder
        for pair in options.pairs:
            on = Setting(pair, options.batch, options.steps, device=options.device)
            rows = [cells(method, measure(method, on, options.rounds, say)) for method in options.methods]
            show(out, f"{PAIRS[pair][0]}, batches of {on.batch}, K = {on.steps}", COLUMNS, rows)
        out.print(opening(on))
    out.print("\n".join(LEGEND))


if __name__ == "__main__":
    main()
