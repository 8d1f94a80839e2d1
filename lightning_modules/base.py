"""The base of every regime: one step to override, everything else here."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from attacks import PGD, Attack, Draws, Threat, tempered
from datamodules import Batch
from networks import Facts

Logs = dict[str, Tensor]
ATTACK = 1


class Regime(pl.LightningModule, ABC):
    """One way to train a network. A subclass overrides :meth:`step` and names its loss's equation and source.

    The base owns optimiser, schedule, metrics, logging, validation and what a checkpoint says of itself.

    Args:
        network: builds the network from the dataset's facts, e.g. ``networks.WideResNet`` with its own arguments.
        facts: the dataset's facts, or the same as a dictionary; the command line takes them from the data.
        optimizer: builds the optimiser from the parameters.
        scheduler: builds the learning-rate schedule from the optimiser; None keeps the rate.
        scheduler_interval: whether the schedule counts epochs or optimiser steps.

    Attributes:
        trained_at: temperature that the network's softmax is trained at; strong attacks divide by it.
        replays: how often each mini-batch is seen in a row (free adversarial training).
        attack: crafts training examples; only regimes that do so have one.
    """

    attack: Attack

    trained_at: float = 1.0
    replays: int = 1

    def __init__(
        self,
        network: Callable[[Facts], nn.Module],
        facts: Facts | dict[str, Any],
        optimizer: OptimizerCallable = torch.optim.SGD,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        # What a checkpoint needs to rebuild itself; from the command line these are plain values.
        self.save_hyperparameters(logger=False)
        self.facts = _facts(facts)
        self.network = network(self.facts)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        accuracy = MulticlassAccuracy(self.facts.classes, average="micro")
        self.val_accuracy, self.val_robust_accuracy, self.test_accuracy = (accuracy.clone() for _ in range(3))
        self.val_loss = MeanMetric()
        self._finite = torch.ones((), dtype=torch.bool)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    # What a regime is

    @abstractmethod
    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        """One training step: the loss, and further scalars to log under ``train/``."""

    @property
    def threat(self) -> Threat | None:
        """The threat model that the regime trains against; None for a regime without an adversary."""
        return self.attack.threat if hasattr(self, "attack") else None

    @property
    def monitor(self) -> str:
        """The held-out figure that chooses the best checkpoint."""
        return "val/acc" if self.threat is None else "val/robust_acc"

    def bind(self, attack: Attack) -> Attack:
        """The attack in the dataset's box."""
        return attack.under(attack.threat.within(self.facts.box))

    def draws(self, batch: Batch) -> Draws:
        """This step's random draws: they follow from seed, step and image, whatever the batch or the process."""
        # The word keeps them apart from augmentation's, which are keyed by seed and epoch.
        return Draws(batch.index, (self.seed, self.global_step, ATTACK))

    def craft(self, batch: Batch, target: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Adversarial versions of a batch's images against the network as it stands.

        Args:
            batch: the images and, unless ``target`` takes their place, the labels to move away from.
            target: distributions over the classes to move away from, (B, C), for attacks whose loss is ``kl``.
            temperature: what the network's logits are divided by.
        """
        y = batch.y if target is None else target
        return self.attack(tempered(self.network, temperature), batch.x, y, self.draws(batch))

    # What Lightning calls

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        schedule: dict[str, Any] = {"scheduler": self.scheduler(optimizer), "interval": self.scheduler_interval}
        if isinstance(schedule["scheduler"], ReduceLROnPlateau):
            schedule["monitor"] = schedule["scheduler"].monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_epoch_start(self) -> None:
        # Dropout draws from torch's generator; seeding it by epoch makes a resumed run the same run.
        torch.manual_seed(hash((self.seed, self.current_epoch, self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, logs = self.step(batch, batch_idx)
        # Looking at the loss stops a GPU's queue, so every step's is kept, and looked at where the logger looks anyway.
        self._finite = self._finite.to(loss.device) & loss.detach().isfinite()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and batch_idx % every == 0:
            self._refuse_nan()
        self.log("train/loss_step", loss.detach(), prog_bar=True, on_step=True)
        # Apart from the above: processes agree on an epoch's mean at its end, on a step's they would at every step.
        means = {f"train/{key}": value.detach() for key, value in ({"loss": loss} | logs).items()}
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.y))
        return loss

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._finite &= self.val_loss.compute().isfinite().to(self._finite.device)
            self._refuse_nan()

    def on_train_epoch_end(self) -> None:
        self._refuse_nan()  # before any checkpoint is written

    def _refuse_nan(self) -> None:
        if not self._finite:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise FloatingPointError(
                f"The loss became nan or inf by step {self.global_step} (epoch {self.current_epoch}) at a learning "
                f"rate of {rate:g}: try a smaller rate, gradient clipping or precision 32. Checkpoints are from before."
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.network(batch.x)
        self.val_loss.update(nn.functional.cross_entropy(logits.float(), batch.y), len(batch.y))
        self.log("val/loss", self.val_loss, on_epoch=True, batch_size=len(batch.y))
        self.val_accuracy.update(logits, batch.y)
        self.log("val/acc", self.val_accuracy, prog_bar=True, on_epoch=True, batch_size=len(batch.y))
        # Lightning's check before the first epoch asks whether the data flows, not how robust chance is.
        if self.threat is not None and not self.trainer.sanity_checking:
            # The same draws in every epoch, so that epochs are compared by their weights alone.
            x_adv = PGD(self.threat, steps=10)(self.network, batch.x, batch.y, Draws(batch.index, self.seed))
            self.val_robust_accuracy.update(self.network(x_adv), batch.y)
            self.log("val/robust_acc", self.val_robust_accuracy, prog_bar=True, on_epoch=True, batch_size=len(batch.y))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.test_accuracy.update(self.network(batch.x), batch.y)
        self.log("test/acc", self.test_accuracy, on_epoch=True, batch_size=len(batch.y))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        probabilities = self.network(batch.x).float().softmax(1)
        return {"index": batch.index, "label": batch.y, "probabilities": probabilities}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).get("facts")
        if trained is not None:
            self.facts.require(_facts(trained), "The checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained_at"] = float(self.trained_at)
        # A notebook may have passed functions; a checkpoint that is safe to load cannot hold them.
        hparams = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        plain = {key: value for key, value in hparams.items() if _plain(value)}
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain | {"facts": self.facts.to_dict()}


def _facts(value: Facts | dict[str, Any]) -> Facts:
    """A dictionary is what the command line links, because a checkpoint holds it without trusting any class."""
    return Facts(**value) if isinstance(value, dict) else value


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)
