"""A suite's progress: attack, images done, robust so far, time left."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from attacks.subject import Ledger


class Bar:
    """A line for every attack.

    Args:
        title: what the model is called.
        count: number of images.
        console: where to draw; None for nowhere.
    """

    def __init__(self, title: str, count: int, console: Console | None) -> None:
        self.title = title
        self.count = count
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.total:.0f} images"),
            TextColumn("robust {task.fields[robust]}"),
            TimeRemainingColumn(),
            console=console,
            disable=console is None,
        )
        self.task: TaskID = TaskID(0)
        self.budget: int | None = None
        self.done = self.broken = self.before = 0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, name: str, stands: np.ndarray, budget: int | None) -> None:
        """Begins an attack on the images that stand; ``budget`` is the most forward passes that one may cost."""
        self.budget, self.done, self.broken, self.before = budget, 0, 0, int(stands.sum())
        self.task = self.progress.add_task(f"{self.title} {name}", total=self.before, done=0, robust="–")

    def watch(self, size: int) -> Callable[["Ledger"], None]:
        """What a batch's ledger calls after a pass: moves the bar by the share of its budget that is spent."""
        last = time.monotonic()

        def look(ledger: "Ledger") -> None:
            nonlocal last
            # Rarely: on a GPU reading the count waits for it.
            if self.budget is None or self.progress.disable or time.monotonic() - last < 0.5:
                return
            last = time.monotonic()
            spent = min(float(ledger.forwards.max()) / self.budget, 1.0)
            self.progress.update(self.task, completed=self.done + spent * size)

        return look

    def finish(self, stands: np.ndarray) -> None:
        """A batch is done: which of its images still stand."""
        self.done += len(stands)
        self.broken += int((~stands).sum())
        robust = f"{(self.before - self.broken) / self.count:.1%}"
        self.progress.update(self.task, completed=self.done, done=self.done, robust=robust)
