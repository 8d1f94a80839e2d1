"""Runs the attack suite at the end of ``test``, on the tested network and on its teacher."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from rich import get_console
from torch import Tensor, nn

from attacks.base import Attack
from attacks.curves import Curve, draw
from attacks.diagnostics import Finding, diagnose, report
from attacks.features import matrices, reached
from attacks.figures import COUNT, example_grid, success_matrix
from attacks.jsma import JSMA
from attacks.records import Record, write_records
from attacks.results import SuiteResult
from attacks.state import State
from attacks.suite import Precision, Rng, resolve, run_suite
from attacks.tables import accuracies, costs
from attacks.threat import Threat

if TYPE_CHECKING:
    from datamodules import Images

Part = TypeVar("Part")
UNFINISHED = ".unfinished"  # beside the runs of one name, so that the same command finds what it was stopped at


class Batches(Sequence[tuple[Tensor, Tensor, Tensor]]):
    """The images of a split, assembled a batch at a time, on a device."""

    def __init__(self, data: "Images", index: Tensor, size: int) -> None:
        self.data = data
        self.parts = index.split(size) if len(index) else ()

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, y, index, *_ = self.data.batch("test", self.parts[position])
        return x, y, index

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return (self[position] for position in range(len(self)))


class AttackSuite(pl.Callback):
    """Attacks the network after ``test``, and its teacher beside it.

    Figures go to the logger, to ``results.jsonl`` and ``results.csv`` in the run's folder and to a table; what became
    of each image goes to ``outcomes/*.parquet``, a few pictures to ``figures/``. Under DDP every process attacks its
    own share of the images, each image once. The evaluation is in float32, whatever the training's precision. Where
    training left out a class, every accuracy is told without that class and on it alone, too.

    Args:
        attacks: the attacks, each alone against the network; those that state no threat model get this one.
        threat: norm and radius.
        images: how many test images, drawn by the seed; None for all.
        teacher: attack the student's teacher too.
        seed: what the choice of images and, with an image's index, its random draws follow from.
        rng: ``official`` draws as the authors' AutoAttack does, to compare with published figures image by image.
        precision: ``bf16`` searches in bfloat16; successes are confirmed in float32 all the same.
        votes: passes that judge an image; more than 1 for models that draw at random.
        top: with k above 1, top-k accuracies too; attacks then make all their steps on every image.
        keep_images: write every adversarial image to ``outcomes/*.npz``.
        curves: attacks to repeat at several radii or numbers of steps, drawn to ``figures/``.
        diagnose: ask after the suite whether the model is really robust, and say why or why not.
    """

    def __init__(
        self,
        attacks: list[Attack],
        threat: Threat,
        images: int | None = None,
        teacher: bool = True,
        seed: int = 0,
        rng: Rng = "image",
        precision: Precision = "32",
        votes: int = 1,
        top: int = 1,
        keep_images: bool = False,
        curves: list[Curve] | None = None,
        diagnose: bool = False,
    ) -> None:
        if images is not None and images < 1:
            raise ValueError(f"images must be at least 1, got {images}.")
        self.attacks = attacks
        self.threat = threat
        self.images = images
        self.teacher = teacher
        self.settings: dict[str, Any] = {"seed": seed, "rng": rng, "precision": precision, "votes": votes}
        self.top = top
        self.keep_images = keep_images
        self.curves = curves or []
        names = [curve.name for curve in self.curves]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"There are two curves of {', '.join(twice)}; each needs a name, and a figure, of its own."
            )
        self.diagnose = diagnose
        self.checkpoint = ""  # which weights are tested, as the table calls them
        self.silent = False  # True leaves the table to a later test, which will show these figures too
        self.results: dict[tuple[str, str], list[Record]] = {}
        self.states: list[State] = []
        self.findings: dict[str, list[Finding]] = {}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        teacher = getattr(pl_module, "teacher", None) if self.teacher else None
        role = "network" if teacher is None else "student"
        self._evaluate(trainer, pl_module, pl_module.network, role, self.checkpoint, pl_module.trained_at)
        # The teacher is the same for every checkpoint of the student, so it is attacked once.
        if teacher is not None and ("teacher", "") not in self.results:
            self._evaluate(trainer, pl_module, teacher.on(pl_module.device), "teacher", "", teacher.trained_at)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.silent:
            get_console().print(accuracies(self.results, f"Accuracy, % [95 % interval] at {self.threat}"))
            get_console().print(costs(self.results))
            for name, findings in self.findings.items():
                get_console().print(report(findings, f"Is the robustness of {name} real?"))
        for state in self.states:
            state.finish()

    def _evaluate(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        network: nn.Module,
        role: str,
        checkpoint: str,
        temperature: float,
    ) -> None:
        data: Images = trainer.datamodule  # type: ignore[attr-defined]
        index = data.split_index("test")
        # Test sets are often sorted by class; a part of one is a draw of it, the same for every network.
        order = torch.randperm(len(index), generator=torch.Generator().manual_seed(self.settings["seed"]))
        count = trainer.world_size if trainer.fast_dev_run else self.images  # type: ignore[attr-defined]
        index = index[order[:count]]
        if len(index) < trainer.world_size:
            raise ValueError(f"{trainer.world_size} processes cannot share {len(index)} images: attack more of them.")
        shard = index[trainer.global_rank :: trainer.world_size].to(pl_module.device)
        batches = Batches(data, shard, data.eval_batch_size)
        threat = self.threat.within(data.facts.box)
        name = "-".join(filter(None, [role, checkpoint]))
        console = get_console() if trainer.is_global_zero and trainer.progress_bar_callback else None

        def run(attacks: list[Attack], title: str, top: int = 1, examples: int = 0) -> SuiteResult:
            self.states.append(State(Path(trainer.default_root_dir).parent / UNFINISHED))
            result = run_suite(
                network,
                batches,
                attacks,
                threat,
                temperature,
                top=top,
                examples=examples,
                state=self.states[-1],
                title=title,
                console=console,
                **self.settings,
            )
            return SuiteResult.merge(gather(result, trainer.world_size))

        def signed(records: Iterable[Record]) -> list[Record]:
            return [replace(record, model=role, checkpoint=checkpoint) for record in records]

        result = run(self.attacks, role, self.top, len(shard) if self.keep_images else COUNT)
        named = resolve(self.attacks, threat, temperature)
        gammas = {name: jsma.gamma for name, jsma in named.items() if isinstance(jsma, JSMA) and jsma.target is None}
        own = pl_module.records() if role != "teacher" else []
        parts = result.left_out(*data.omitted) if data.omitted else []
        records = signed([*result.records(), *reached(result, gammas), *own, *parts])
        self.results[role, checkpoint] = records
        prefix = "test" if role != "teacher" else "test/teacher"
        # Every process holds the same figures, so their mean is the figure.
        pl_module.log_dict({f"{prefix}/{record.metric}": record.value for record in records}, sync_dist=True)
        if trainer.is_global_zero:
            self._keep(trainer, result, records, name)
        for curve in self.curves:
            points = [run([attack], f"{role} {curve.name}") for attack in curve.attacks(threat)]
            # Of an attack in parts the whole; a strong attack on a network trained at T = 1 is none.
            found = signed(record for point in points for record in point.records() if record.metric in point.radii)
            if trainer.is_global_zero and found:
                values = zip(found, curve.values, strict=True)
                write_records(self._folder(trainer), [replace(r, metric=f"{curve.name}: {v}") for r, v in values])
                path = self._folder(trainer) / "figures" / f"{curve.name} {name}.png".replace(" ", "-")
                self._show(trainer, path.stem, draw(curve, records[0], found, path))
        if self.diagnose and not self.silent and trainer.is_global_zero:
            findings = diagnose(network, batches, threat, temperature, self.settings["seed"], result, console=console)
            self.findings[name] = findings
            path = self._folder(trainer) / f"diagnostics-{name}.json"
            path.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")

    def _folder(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir)

    def _keep(self, trainer: pl.Trainer, result: SuiteResult, records: list[Record], name: str) -> None:
        """Writes files into the run's folder and sends table and pictures to W&B where it is used."""
        folder, facts = self._folder(trainer), trainer.datamodule.facts  # type: ignore[attr-defined]
        write_records(folder, records)
        result.write(folder / "outcomes" / f"{name}.parquet")
        if self.keep_images:
            result.write_images(folder / "outcomes" / f"{name}.npz")
        picture = example_grid(result, facts, folder / "figures" / f"examples-{name}.png")
        self._show(trainer, f"examples/{name}", picture)
        for attack, success in matrices(result).items():
            path = folder / "figures" / f"{attack} {name}.png".replace(" ", "-")
            self._show(trainer, path.stem, success_matrix(success, facts, attack, path))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                columns = ["metric", "threat", "value", "low", "high", "n", "seconds", "forwards", "backwards"]
                rows = [[getattr(record, column) for column in columns] for record in records]
                logger.log_table(f"robustness/{name}", columns=columns, data=rows)

    def _show(self, trainer: pl.Trainer, key: str, picture: Path | None) -> None:
        """Sends a picture to W&B where it is used."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and picture is not None:
                logger.log_image(key, [str(picture)])


def gather(part: Part, world_size: int) -> list[Part]:
    """What every process holds, on every process."""
    parts = [part] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(parts, part)
    return parts
