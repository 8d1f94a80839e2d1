"""Says at the end of ``test`` how a network fares on corrupted images and on other datasets, beside its teacher."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.progress import track
from rich.table import Table
from torch import Tensor

from attacks.evaluator import Batches, Evaluator, Judged, gather
from attacks.records import Record
from attacks.results import CLEAN
from attacks.tables import accuracies
from datamodules import Images
from interpret.calibration import Batch
from shift.corrupted import Corrupted, corruption_accuracy
from shift.elsewhere import class_map, records, relabelled
from shift.figures import accuracy_map, difference_map, severity_curves
from shift.judgement import Judgement, judgements, keep
from shift.sources import Corruptions

TEST_SET = "test set"
Found = dict[str, list[Record]]
COLUMNS = ("metric", "value", "low", "high", "n", "unit", "seconds")


class Shift(Evaluator):
    """Judges the tested network and its teacher beyond the test set; it does nothing unless asked for.

    After a fit the best weights alone are judged. Figures go where those of the attack suite go, with tables and
    pictures of their own; what was said of every image goes to ``outcomes/``. Under DDP every process judges its own
    share of the images.

    Args:
        corruptions: where corrupted test images come from: :class:`shift.CIFARC`, the published files, or
            :class:`shift.CIFARCLike`, which makes them; None for none.
        ood: other datasets of the same classes, by name, whose test images are judged too; classes are matched by
            their names.
        images: how many images of each dataset, drawn by the seed; None for all, 0 for none.
        seed: of that draw.

    Raises:
        ValueError: if a dataset in ``ood`` is called as the test set is, or two of them would share a file.
    """

    def __init__(
        self,
        corruptions: Corruptions | None = None,
        ood: dict[str, Images] | None = None,
        images: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(images, seed)
        self.corruptions = corruptions
        self.ood = ood or {}
        if TEST_SET in self.ood:
            raise ValueError(f"shift.ood names a dataset '{TEST_SET}', as the test set itself is called: rename it.")
        files = [_file(name).casefold() for name in self.ood]
        if twice := [name for name, file in zip(self.ood, files, strict=True) if files.count(file) > 1]:
            raise ValueError(f"shift.ood's datasets {', '.join(twice)} would share a file of outcomes: rename one.")
        self.classes: dict[str, Tensor] = {}
        self.tables: list[Table] = []

    @property
    def asked(self) -> bool:
        """Whether there is anything to do."""
        return self.images != 0 and (self.corruptions is not None or bool(self.ood))

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # What does not fit ends the run here, not after a fit.
        if not self.asked or stage not in ("fit", "test") or self.classes:
            return
        for name, data in self.ood.items():
            if trainer.is_global_zero:
                data.prepare_data()
            trainer.strategy.barrier()
            self.classes[name] = class_map(pl_module.facts, data.facts, f"shift.ood.{name}")
            data.setup("test")
            self.batches(trainer, pl_module, data=data)
        if self.corruptions is not None:
            self.corruptions.kinds(self.batches(trainer, pl_module))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.asked or self.silent:
            return
        judged = [each for each in (self.network(pl_module), self.teacher_of(pl_module)) if each is not None]
        batches = self.batches(trainer, pl_module)
        found: Found = {each.role: [] for each in judged}
        if self.corruptions is not None:
            self._corrupted(trainer, self.corruptions, judged, batches, found)
        if self.ood:
            self._elsewhere(trainer, pl_module, judged, batches, found)
        for each in judged:
            self.say(trainer, pl_module, each, found[each.role])
            self.tabulate(trainer, f"shift/{each.name}", found[each.role], COLUMNS)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.print(*self.tables)
        self.tables = []

    def _corrupted(
        self,
        trainer: pl.Trainer,
        corruptions: Corruptions,
        judged: Sequence[Judged],
        batches: Batches,
        found: Found,
    ) -> None:
        """Adds the records of corrupted images to those found; keeps, draws and tabulates what was said of them."""
        networks = {each.role: each.network for each in judged}
        share = corruption_accuracy(networks, batches, corruptions, self.console(trainer))
        shares = gather(share, trainer.world_size)
        results = {role: Corrupted.merge([share[role] for share in shares]) for role in networks}
        first, teacher = results[judged[0].role], results.get("teacher")
        for role, result in results.items():
            found[role] += result.records(None if result is teacher else teacher)
        if not trainer.is_global_zero:
            return
        for each in judged:
            results[each.role].write(self.folder(trainer) / "outcomes" / f"corrupted-{each.name}.parquet")
            self._draw(trainer, f"accuracy-{each.name}", accuracy_map, results[each.role], title=each.role)
        if teacher is not None:
            self._draw(trainer, f"difference-{judged[0].name}", difference_map, first, teacher)
        self._draw(trainer, f"severity-{judged[0].name}", severity_curves, results, found)
        cells = {f"{kind} {severity}" for kind, severity in first.cells}
        names = dict.fromkeys(record.metric.removeprefix(f"{first.source}: ") for record in found[judged[0].role])
        rows = {f"{first.source}: {name}": name for name in names if name not in cells}
        graded = {metric for metric, name in rows.items() if name.startswith(("severity ", "ECE ", "NLL "))}
        over = f"by severity, mean of {len(first.counted)} corruptions"
        for part, kind in ((rows.keys() - graded, "by corruption"), (graded, over)):
            title = f"{first.source} {kind}, accuracy in % [95 % interval]"
            self._tabulate(judged, found, {metric: rows[metric] for metric in part}, title)

    def _elsewhere(
        self, trainer: pl.Trainer, pl_module: Any, judged: Sequence[Judged], batches: Batches, found: Found
    ) -> None:
        """Adds the records of other datasets to those found, those of the test set before them."""
        networks = {each.role: each.network for each in judged}
        console = self.console(trainer)
        for name in track([TEST_SET, *self.ood], "other datasets", console=console, disable=console is None):
            begun = time.perf_counter()
            images = batches if name == TEST_SET else self._foreign(trainer, pl_module, name)
            shares = gather(judgements(networks, images), trainer.world_size)
            seconds = time.perf_counter() - begun
            for each in judged:
                said = Judgement.merge([share[each.role] for share in shares])
                found[each.role] += records(name, said, seconds)
                if trainer.is_global_zero and name != TEST_SET:
                    keep(self.folder(trainer) / "outcomes" / _file(f"ood-{name}-{each.name}.parquet"), {CLEAN: said})
        rows = {
            f"{name}: {what}": f"{name}: {what}"
            for name in (TEST_SET, *self.ood)
            for what in ("accuracy", "ECE", "NLL")
        }
        self._tabulate(judged, found, rows, "Out of distribution, accuracy in % [95 % interval]")

    def _foreign(self, trainer: pl.Trainer, pl_module: Any, name: str) -> Iterator[Batch]:
        """This process's share of another dataset's images, with the network's labels."""
        return relabelled(self.batches(trainer, pl_module, data=self.ood[name]), self.classes[name])

    def _draw(self, trainer: pl.Trainer, name: str, chart: Callable[..., Path], *given: Any, **named: Any) -> None:
        path = chart(*given, path=self.folder(trainer) / "figures" / "shift" / f"{name}.png", **named)
        self.show(trainer, path.stem, path)

    def _tabulate(self, judged: Sequence[Judged], found: Found, rows: Mapping[str, str], title: str) -> None:
        """Keeps a table of some records, by metric and by what it calls them, to be shown when the test has ended."""
        shown = {
            (each.role, each.checkpoint): [
                replace(r, metric=rows[r.metric]) for r in found[each.role] if r.metric in rows
            ]
            for each in judged
        }
        self.tables.append(accuracies(shown, title))


def _file(name: str) -> str:
    """A name that a file can have."""
    return re.sub(r"[^\w.()-]+", "-", name)
