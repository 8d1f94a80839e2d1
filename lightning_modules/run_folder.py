"""A run's folder: what was run, where, what came of it, and the command that repeats it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pyarrow import parquet
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from attacks.evaluator import gather
from networks.counts import multiply_adds, parameters

PACKAGES = ("tempered", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "jsonargparse", "numpy")
METRICS = "metrics.csv"
PROJECT = "tempered"  # of W&B
PANELS = {"loss": ("train/loss", "val/loss"), "accuracy": ("val/acc", "val/robust_acc")}  # of the picture of a fit


def new_folder(runs: Path, name: str, subcommand: str) -> Path:
    """Makes the folder of a new run: ``runs/<name>/<time>``, with the subcommand's name behind it unless it is ``fit``.

    Two runs that begin in the same second get folders of their own. Processes other than the first, which know the
    folder only once they have joined it, make none.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    stem = stamp if subcommand == "fit" else f"{stamp}-{subcommand}"
    if getattr(rank_zero_only, "rank", 0) == 0:
        (runs / name).mkdir(parents=True, exist_ok=True)  # what stands in its place is an error, not another run
    for number in count(1):
        folder = runs / name / (stem if number == 1 else f"{stem}-{number}")
        if getattr(rank_zero_only, "rank", 0) != 0:
            break
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        break
    return folder


def wandb_mode(client: Any) -> str:
    """How W&B is used: what ``WANDB_MODE`` says, else online where this machine is logged in; it asks nobody."""
    asked = os.environ.get("WANDB_MODE", "online")
    return asked if asked != "online" or client.login(prompt=False, verify=False) else "offline"


def loggers(folder: Path, name: str, wandb: bool) -> list[Logger]:
    """CSV always; W&B online where this machine is logged in, offline otherwise, never asking.

    ``WANDB_NAME`` and ``WANDB_JOB_TYPE`` are those of this run: W&B itself reads them once in a process. Its config
    tells the seed, and as ``experiment`` the name without the seed that a study writes behind it: what seeds share.
    """
    earlier = folder / METRICS
    if earlier.exists():
        # Lightning's logger deletes the file of the fit that is being resumed.
        part = 1 + len(list(folder.glob("metrics-*.csv")))
        rank_zero_only(earlier.rename)(folder / f"metrics-{part}.csv")
    chosen: list[Logger] = [CSVLogger(folder, name="", version="")]
    if wandb:
        try:
            import wandb as client
        except ImportError:
            rank_zero_info("W&B is not installed: this run logs to CSV only (pip install wandb, or --wandb false).")
        else:
            given = os.environ.get("WANDB_NAME", "")
            experiment = given.rpartition(" #")[0] or given or name
            logger = WandbLogger(
                given or f"{name}/{folder.name}",
                folder,
                project=PROJECT,
                job_type=os.environ.get("WANDB_JOB_TYPE"),
                config={"experiment": experiment, "seed": int(os.environ.get("PL_GLOBAL_SEED", 0))},
                mode=wandb_mode(client),
                settings=client.Settings(quiet=True),
            )
            chosen.append(logger)
    return chosen


def worth_testing(folder: Path) -> list[Path]:
    """A fit's last weights and its best ones, which come last; the best alone where both are the same."""
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    found = [path for path in (last, best) if path.exists()]
    return [best] if len(found) == 2 and _step(last) == _step(best) else found


def _step(checkpoint: Path) -> int:
    """How many steps a checkpoint's weights have been trained for."""
    return int(torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)["global_step"])


def environment() -> dict[str, Any]:
    """Versions and machine, and the commit where the working directory is a checkout."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions,
        "commit": commit or None,
    }


class RunFolder(BasePredictionWriter):
    """Keeps the run's folder.

    Args:
        folder: the run's folder.
        config: the resolved config as YAML.
        subcommand: which of Lightning's verbs is run.
    """

    def __init__(self, folder: Path, config: str, subcommand: str) -> None:
        super().__init__("epoch")
        self.folder = folder
        self.config = config
        self.subcommand = subcommand

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero or (self.folder / "config.yaml").exists():
            return
        (self.folder / "config.yaml").write_text(self.config)
        (self.folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
        started = shlex.join(["python", *sys.argv])
        # Relative to this file, because a teacher's folder is renamed when it is complete.
        again = f'python main.py {self.subcommand} --config "$(dirname "$0")/config.yaml"'
        (self.folder / "command.sh").write_text(f"# Repeats this run, which was started as: {started}\n{again}\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update({"tempered": self.config}, allow_val_change=True)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        roles = {"network": pl_module.network}
        if hasattr(pl_module, "teacher"):
            roles = {"student": pl_module.network, "teacher": pl_module.teacher.module}
        for role, network in roles.items():
            size = f"{parameters(network):,} parameters"
            work = f"{multiply_adds(network, pl_module.facts.shape):,} multiply-adds per image"
            rank_zero_info(f"{role}: {type(network).__name__}, {size}, {work}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        picture = loss_curves(self.folder)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and picture is not None:
                logger.log_image("curves", [str(picture)])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        last = self.folder / "checkpoints" / "last.ckpt"
        if self.subcommand == "fit" and last.exists():
            rank_zero_info(
                f"Stopped in epoch {trainer.current_epoch}. Go on with: "
                f"python main.py fit --config {self.folder / 'config.yaml'} --ckpt_path {last}"
            )
        elif self.subcommand == "fit" and trainer.global_step > 0:
            rank_zero_info("Stopped before the first epoch was complete: there is nothing to go on from, begin again.")

    def write_on_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, predictions: Sequence[Any], batch_indices: Any
    ) -> None:
        parts = {key: torch.cat([p[key] for p in predictions]).cpu() for key in ("index", "label", "probabilities")}
        gathered = gather(parts, trainer.world_size)
        if not trainer.is_global_zero:
            return
        whole = {key: torch.cat([part[key] for part in gathered]) for key in parts}
        order = whole["index"].argsort()
        probabilities = whole["probabilities"][order]
        table = {
            "index": whole["index"][order].numpy(),
            "label": whole["label"][order].numpy(),
            "prediction": probabilities.argmax(1).numpy(),
            "probabilities": probabilities.tolist(),
        }
        parquet.write_table(pa.table(table), self.folder / "predictions.parquet")
        rank_zero_info(f"Predictions of {len(order)} images: {self.folder / 'predictions.parquet'}")


def loss_curves(folder: Path) -> Path | None:
    """Draws losses and accuracies by epoch from a run's ``metrics*.csv``; None where no epoch was finished."""
    curves = by_epoch(folder)
    if not any(key in curves for keys in PANELS.values() for key in keys):
        return None
    figure = Figure(figsize=(8, 3), layout="constrained")
    for ax, (title, keys) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for key, style in zip(keys, ("-", "--"), strict=True):
            if key in curves:
                ax.plot(list(curves[key]), list(curves[key].values()), style, marker=".", label=key)
        ax.set(xlabel="epoch", title=title, ylim=(0, 1) if title == "accuracy" else None)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    path = folder / "figures" / "curves.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def by_epoch(folder: Path) -> dict[str, dict[int, float]]:
    """What a run's ``metrics*.csv`` say of every metric by epoch; of a fit that was resumed, in all its parts.

    A fit that was killed while it wrote has left a file without lines, or a line that is cut, which says nothing.
    """
    files = [*sorted(folder.glob("metrics-*.csv")), folder / METRICS]
    whole = pyarrow.csv.ParseOptions(invalid_row_handler=lambda row: "skip")
    curves: dict[str, dict[int, float]] = {}
    for file in files:
        if not file.exists() or not file.stat().st_size:
            continue
        for row in pyarrow.csv.read_csv(file, parse_options=whole).to_pylist():
            for key, value in row.items():
                if value is not None and key not in ("epoch", "step") and not key.endswith("_step"):
                    curves.setdefault(key, {})[row["epoch"]] = value
    return curves
