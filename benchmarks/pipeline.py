"""How fast batches are made beside torchvision's per-sample pipeline: ``python -m benchmarks.pipeline``.

Both make the batches of one epoch after another from the same uint8 images in memory: shuffled, shifted by up to 4
pixels, mirrored and scaled to [0, 1] for training, in order and scaled for evaluation. Ours is what a fit does: the
dataset's loader hands out indices and :meth:`Images.batch` puts a batch together. Torchvision's is its CIFAR10 with
RandomCrop, RandomHorizontalFlip and ToTensor in a DataLoader. All run in turn within each round; counted are
process-CPU seconds of this process and its workers, at one thread each, and seconds by the clock. Images are noise,
whose values cost nothing more or less than photographs do.
"""

import argparse
import platform
import resource
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torchvision
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.common import processor, said
from datamodules import ImageFolder, Images, Split
from networks import Facts

GOAL = 10.0  # times torchvision's, of training batches without workers
COLUMNS = ("batches of", "by", "images per CPU second", "its CPU time over ours", "images/s", "its time over ours")
LEGEND = (
    "Images per CPU second, images/s: by the median of the rounds.",
    "Times over ours: in the same round, median (lowest–highest); CPU time counts workers, their start included.",
)

Epoch = Callable[[int], object]
Seconds = tuple[float, float]


class Noise(Images):
    """Uniform noise of CIFAR's shape; arguments are those of :class:`Images`."""

    facts = Facts(classes=10, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)

    def __init__(self, images: Tensor, batch_size: int) -> None:
        super().__init__(batch_size, batch_size, augment=True, validation=0.0)
        self.images = images

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        return self.images, torch.arange(len(self.images)) % 10


class PerSample(datasets.CIFAR10):
    """Torchvision's CIFAR10, whose ``__getitem__`` is what is measured, on images that need no files."""

    def __init__(self, images: Tensor, train: bool) -> None:
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
        self.transform = transforms.Compose([*steps, transforms.ToTensor()])
        self.target_transform = None
        self.data = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = (torch.arange(len(images)) % 10).tolist()


def ours(data: Images, split: Split) -> Epoch:
    """An epoch of our loader and batches."""
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()

    def epoch(number: int) -> None:
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        key = (0, number) if split == "train" else None
        for fetched in loader:
            data.batch(split, fetched.index, key, fetched.images)

    return epoch


def theirs(images: Tensor, split: Split, batch_size: int, workers: int) -> Epoch:
    """Torchvision's transforms in a DataLoader, as its tutorials have it."""
    train = split == "train"
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        PerSample(images, train), batch_size, shuffle=train, num_workers=workers
    )
    return lambda number: [None for _ in loader]


def spent(run: Callable[[], object]) -> Seconds:
    """CPU seconds of this process and of the workers that have ended, and seconds by the clock."""
    before, began = _cpu(), time.perf_counter()
    run()
    return _cpu() - before, time.perf_counter() - began


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(runs: dict[str, Epoch], rounds: int, title: str, say: Console) -> dict[str, list[Seconds]]:
    """CPU seconds and seconds of an epoch by each, in turn within every round; an epoch before them is not counted."""
    measured: dict[str, list[Seconds]] = {by: [] for by in runs}
    for number in range(rounds + 1):
        for by, epoch in runs.items():
            seconds = spent(partial(epoch, number))
            if number:
                measured[by].append(seconds)
        say.print(f"{title}: round {number} of {rounds} done")  # a bar that moves would be counted
    return measured


def rows(title: str, measured: dict[str, list[Seconds]], images: int) -> list[list[str]]:
    """The cells, by :data:`COLUMNS`; the first in ``measured`` is ours."""
    cells = []
    base = next(iter(measured.values()))
    for by, seconds in measured.items():
        row = [title, by]
        for axis in range(2):
            values = [each[axis] for each in seconds]
            ratios = [value / mine[axis] for value, mine in zip(values, base, strict=True)]
            ratio = f"{median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})" if seconds is not base else ""
            if ratio and title == "train" and by.endswith("0 workers") and axis == 0:
                ratio += f"; target ≥ {GOAL:g}: {'met' if median(ratios) >= GOAL else 'missed'}"
            row += [f"{images / median(values):,.0f}", ratio]
        cells.append(row)
    return cells


def reading(root: Path, size: int) -> str:
    """How long a folder's images take when they are read for the first time, and again."""
    with TemporaryDirectory() as cache:
        data = ImageFolder(str(root), size, cache=cache)

        def read() -> int:
            return sum(len(data.load(train)[0]) for train in (True, False))

        first, again, count = spent(read), spent(read), read()
    says = [f"{cpu:.2f} CPU seconds, {clock:.2f} by the clock" for cpu, clock in (first, again)]
    return f"{count:,} images of {root.name} at {size} by {size}, read first: {says[0]}; again: {says[1]}"


def header(arguments: Sequence[str] | None, images: int, batch_size: int, rounds: int) -> list[str]:
    """Where, when and with what it was measured, line by line."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    command = shlex.join(["python", "-m", "benchmarks.pipeline", *said(arguments)])
    return [
        f"{processor()}, {torch.get_num_threads()} thread per process",
        versions,
        f"{datetime.now(UTC):%Y-%m-%d}: {command}; {images:,} images, batches of {batch_size}, rounds: {rounds}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--images", type=int, default=50_000, help="images in an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of torchvision's second loader; its first has none")
    parser.add_argument("--folder", type=Path, help="time the reading of this ImageFolder, too")
    parser.add_argument("--size", type=int, default=32, help="that the folder's images are brought to")
    options = parser.parse_args(arguments)
    if min(options.images, options.batch_size, options.rounds, options.workers) < 1:
        parser.error("--images, --batch-size, --rounds and --workers must be at least 1.")
    torch.set_num_threads(1)
    say, out = Console(stderr=True), Console(highlight=False, markup=False, soft_wrap=True)
    shape = (options.images, 3, 32, 32)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Noise(images, options.batch_size)
    data.setup()
    table = Table(*COLUMNS, box=SIMPLE_HEAD)
    for split in ("train", "test"):
        runs = {"tempered": ours(data, split)}
        for workers in (0, options.workers):
            runs[f"torchvision, {workers} workers"] = theirs(images, split, options.batch_size, workers)
        for cells in rows(split, measure(runs, options.rounds, split, say), options.images):
            table.add_row(*cells)
    out.print("\n".join(header(arguments, options.images, options.batch_size, options.rounds)))
    out.width = max(out.width, 120)  # a narrower table cannot be read
    out.print(table, soft_wrap=False)
    out.print("\n".join(LEGEND))
    if options.folder:
        out.print(reading(options.folder, options.size))


if __name__ == "__main__":
    main()
