"""Runs the attack suite at the end of ``test``, on the tested network and on its teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from rich import get_console
from rich.table import Table
from torch import Tensor, nn

from attacks.base import Attack
from attacks.figures import example_grid
from attacks.records import Record, write_records
from attacks.suite import CLEAN, SuiteResult, run_suite
from attacks.threat import Threat

if TYPE_CHECKING:
    from datamodules import Images

Part = TypeVar("Part")


class Batches(Sequence[tuple[Tensor, Tensor, Tensor]]):
    """The images of a split, assembled a batch at a time, on a device."""

    def __init__(self, data: "Images", index: Tensor, size: int) -> None:
        self.data = data
        self.parts = index.split(size) if len(index) else ()

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return self.data.batch("test", self.parts[position])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return (self[position] for position in range(len(self)))


class AttackSuite(pl.Callback):
    """Attacks the network after ``test``, and its teacher beside it.

    Figures go to the logger, to ``results.jsonl`` and ``results.csv`` in the run's folder and to a table; what became
    of each image goes to ``outcomes/*.parquet``, a few pictures to ``figures/``. Under DDP every process attacks its
    own share of the images, each image once. The evaluation is in float32, whatever the training's precision.

    Args:
        attacks: the attacks, each alone against the network; those that state no threat model get this one.
        threat: norm and radius.
        images: how many test images, drawn by the seed; None for all.
        teacher: attack the student's teacher too.
        seed: what the choice of images and, with an image's index, its random draws follow from.
    """

    def __init__(
        self,
        attacks: list[Attack],
        threat: Threat,
        images: int | None = None,
        teacher: bool = True,
        seed: int = 0,
    ) -> None:
        if images is not None and images < 1:
            raise ValueError(f"images must be at least 1, got {images}.")
        self.attacks = attacks
        self.threat = threat
        self.images = images
        self.teacher = teacher
        self.seed = seed
        self.checkpoint = ""  # which weights are tested, as the table calls them
        self.silent = False  # True leaves the table to a later test, which will show these figures too
        self.results: dict[tuple[str, str], list[Record]] = {}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        teacher = getattr(pl_module, "teacher", None) if self.teacher else None
        role = "network" if teacher is None else "student"
        self._evaluate(trainer, pl_module, pl_module.network, role, self.checkpoint, pl_module.trained_at)
        # The teacher is the same for every checkpoint of the student, so it is attacked once.
        if teacher is not None and ("teacher", "") not in self.results:
            self._evaluate(trainer, pl_module, teacher.on(pl_module.device), "teacher", "", teacher.trained_at)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.silent:
            get_console().print(self.table())

    def _evaluate(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        network: nn.Module,
        role: str,
        checkpoint: str,
        temperature: float,
    ) -> None:
        data: Images = trainer.datamodule  # type: ignore[attr-defined]
        index = data.split_index("test")
        # Test sets are often sorted by class; a part of one is a draw of it, the same for every network.
        order = torch.randperm(len(index), generator=torch.Generator().manual_seed(self.seed))
        count = trainer.world_size if trainer.fast_dev_run else self.images  # type: ignore[attr-defined]
        index = index[order[:count]]
        if len(index) < trainer.world_size:
            raise ValueError(f"{trainer.world_size} processes cannot share {len(index)} images: attack more of them.")
        shard = index[trainer.global_rank :: trainer.world_size].to(pl_module.device)
        result = run_suite(
            network,
            Batches(data, shard, data.eval_batch_size),
            self.attacks,
            self.threat.within(data.facts.box),
            temperature,
            self.seed,
            title=role,
            console=get_console() if trainer.is_global_zero and trainer.progress_bar_callback else None,
        )
        result = SuiteResult.merge(gather(result, trainer.world_size))
        records = [replace(record, model=role, checkpoint=checkpoint) for record in result.records()]
        self.results[role, checkpoint] = records
        prefix = "test" if role != "teacher" else "test/teacher"
        # Every process holds the same figures, so their mean is the figure.
        pl_module.log_dict({f"{prefix}/{record.metric}": record.value for record in records}, sync_dist=True)
        if trainer.is_global_zero:
            self._keep(trainer, result, records, "-".join(filter(None, [role, checkpoint])))

    def _keep(self, trainer: pl.Trainer, result: SuiteResult, records: list[Record], name: str) -> None:
        """Writes files into the run's folder and sends table and pictures to W&B where it is used."""
        folder = Path(trainer.default_root_dir)
        write_records(folder, records)
        result.write(folder / "outcomes" / f"{name}.parquet")
        picture = example_grid(result, trainer.datamodule.facts, folder / "figures" / f"examples-{name}.png")  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = [[r.metric, r.threat, r.value, r.low, r.high, r.n, r.seconds] for r in records]
                columns = ["metric", "threat", "value", "low", "high", "n", "seconds"]
                logger.log_table(f"robustness/{name}", columns=columns, data=rows)
                if picture is not None:
                    logger.log_image(f"examples/{name}", [str(picture)])

    def table(self) -> Table:
        """All that this callback has measured: a row per attack, a column per network."""
        table = Table(title=f"Accuracy, % [95 % interval] at {self.threat}", title_style="bold")
        table.add_column("")
        # The newest test first, so the best checkpoint before the last; the teacher beside them.
        columns = sorted(reversed(self.results.items()), key=lambda column: column[0][0] == "teacher")
        for (role, checkpoint), _ in columns:
            table.add_column(f"{role} ({checkpoint})" if checkpoint else role, justify="right")
        metrics = list(dict.fromkeys(record.metric for _, records in columns for record in records))
        for metric in metrics:
            found = [{r.metric: r for r in records}.get(metric) for _, records in columns]
            cells = [f"{r.value:.1%} [{r.low:.1%}, {r.high:.1%}]".replace("%", "") if r else "–" for r in found]
            table.add_row(metric, *cells, end_section=metric in (CLEAN, metrics[-2]))
        return table


def gather(part: Part, world_size: int) -> list[Part]:
    """What every process holds, on every process."""
    parts = [part] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(parts, part)
    return parts
