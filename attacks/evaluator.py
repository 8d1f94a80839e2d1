"""What the callbacks that judge a network after ``test`` share: which images, which networks, where the figures go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from rich import get_console
from rich.console import Console, RenderableType
from torch import Tensor, nn

from attacks.records import Record, write_records

if TYPE_CHECKING:
    from datamodules import Images

Part = TypeVar("Part")


class Batches(Sequence[tuple[Tensor, Tensor, Tensor]]):
    """Test images, assembled a batch at a time on the device of their index: (images, labels, indices).

    Args:
        data: the dataset.
        chosen: which images, int64 (n,).
        size: images in a batch; by default the dataset's ``eval_batch_size``.
    """

    def __init__(self, data: "Images", chosen: Tensor, size: int | None = None) -> None:
        self.data = data
        self.chosen = chosen
        self.size = size or data.eval_batch_size
        self.parts = chosen.split(self.size) if len(chosen) else ()

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, y, index, *_ = self.data.batch("test", self.parts[position])
        return x, y, index

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return (self[position] for position in range(len(self)))

    def first(self, count: int) -> "Batches":
        """The first of them alone."""
        return Batches(self.data, self.chosen[:count], self.size)


@dataclass(frozen=True)
class Judged:
    """A network that is judged.

    Attributes:
        role: ``student``, ``teacher``, or ``network`` where there is no teacher.
        network: maps images to logits, on the module's device.
        trained_at: the temperature of its training.
        checkpoint: which weights; empty for a teacher, whose are always the same.
    """

    role: str
    network: nn.Module
    trained_at: float
    checkpoint: str = ""

    @property
    def name(self) -> str:
        """What its files are called."""
        return "-".join(filter(None, [self.role, self.checkpoint]))


class Evaluator(pl.Callback):
    """Judges the network at the end of ``test``, and its teacher beside it.

    A part of the test images is a draw of them, the same for every network: test sets are often sorted by class.

    Args:
        images: how many test images, drawn by the seed; None for all.
        seed: of that draw.

    Attributes:
        checkpoint: which weights are tested, as tables call them.
        silent: True leaves the tables to a later test, which will show these figures too.
        results: every network's records, by its role and checkpoint.

    Raises:
        ValueError: for fewer than 0 images.
    """

    def __init__(self, images: int | None = None, seed: int = 0) -> None:
        if images is not None and images < 0:
            raise ValueError(f"images must be at least 0, got {images}.")
        self.images = images
        self.seed = seed
        self.checkpoint = ""
        self.silent = False
        self.results: dict[tuple[str, str], list[Record]] = {}

    def network(self, pl_module: Any) -> Judged:
        """The network that is tested."""
        role = "student" if pl_module.has_teacher else "network"
        return Judged(role, pl_module.network, pl_module.trained_at, self.checkpoint)

    def teacher_of(self, pl_module: Any) -> Judged | None:
        """Its teacher, if it has one."""
        if not pl_module.has_teacher:
            return None
        return Judged("teacher", pl_module.teacher.on(pl_module.device), pl_module.teacher.trained_at)

    def batches(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        shared: bool = True,
        size: int | None = None,
        data: "Images | None" = None,
    ) -> Batches:
        """The images to judge by.

        Args:
            trainer: what runs the test.
            pl_module: on whose device they shall be.
            shared: this process's share of them, each image being one process's; False for all of them.
            size: images in a batch; by default the dataset's.
            data: the dataset; by default the one that is tested on.

        Raises:
            ValueError: if there are fewer images than processes that share them.
        """
        data = trainer.datamodule if data is None else data  # type: ignore[attr-defined]
        index = data.split_index("test")
        order = torch.randperm(len(index), generator=torch.Generator().manual_seed(self.seed))
        count = trainer.world_size if trainer.fast_dev_run else self.images  # type: ignore[attr-defined]
        index = index[order[:count]]
        if shared:
            if len(index) < trainer.world_size:
                raise ValueError(
                    f"{trainer.world_size} processes cannot share {len(index)} images: judge by more of them."
                )
            index = index[trainer.global_rank :: trainer.world_size]
        return Batches(data, index.to(pl_module.device), size)

    def folder(self, trainer: pl.Trainer) -> Path:
        """The run's folder."""
        return Path(trainer.default_root_dir)

    def console(self, trainer: pl.Trainer) -> Console | None:
        """Where progress is shown; None for nowhere."""
        return get_console() if trainer.is_global_zero and trainer.progress_bar_callback else None

    def say(self, trainer: pl.Trainer, pl_module: Any, judged: Judged, records: Sequence[Record]) -> list[Record]:
        """Sends a network's records to the logger and, on rank zero, to the run's files; returns them signed.

        Every process that calls this must hold the same figures; where only rank zero does, only it calls.
        """
        signed = [replace(record, model=judged.role, checkpoint=judged.checkpoint) for record in records]
        self.results.setdefault((judged.role, judged.checkpoint), []).extend(signed)
        prefix = "test/teacher" if judged.role == "teacher" else "test"
        figures = {f"{prefix}/{record.metric}": record.value for record in signed}
        pl_module.log_dict(figures, rank_zero_only=True)
        if trainer.is_global_zero:
            write_records(self.folder(trainer), signed)
        return signed

    def print(self, *tables: RenderableType) -> None:
        """Prints tables whole: a narrow terminal breaks lines, but one that is made to fit it loses columns."""
        console = get_console()
        for table in tables:
            console.print(table, width=max(console.width, console.measure(table).maximum), crop=False)

    def show(self, trainer: pl.Trainer, key: str, picture: Path | None) -> None:
        """Sends a picture to W&B where it is used."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and picture is not None:
                logger.log_image(key, [str(picture)])

    def tabulate(self, trainer: pl.Trainer, key: str, records: Sequence[Record], columns: Sequence[str]) -> None:
        """Sends a table of records to W&B where it is used."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = [[getattr(record, column) for column in columns] for record in records]
                logger.log_table(key, columns=list(columns), data=rows)


def gather(part: Part, world_size: int) -> list[Part]:
    """What every process holds, on every process."""
    parts = [part] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(parts, part)
    return parts
