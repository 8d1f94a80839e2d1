"""The base of every regime: one step to override, everything else here."""

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.parsing import collect_init_args
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from attacks import PGD, Attack, Draws, Threat, tempered
from attacks.prepare import StandIn
from attacks.records import Record
from datamodules import Batch
from lightning_modules.checkpoints import check_resumed, plain
from lightning_modules.means import Means
from lightning_modules.noise import Moment, Noise
from lightning_modules.optimisation import RateScaling, schedule
from lightning_modules.watch import Watch
from networks import Facts
from networks.base import renormalise

Logs = dict[str, Tensor]
Bound = TypeVar("Bound", bound=Attack)
# What a step draws for; each has a stream of its own, and augmentation, keyed by seed and epoch, another.
ATTACK, NOISE = 1, 2


class Regime(pl.LightningModule, ABC):
    """One way to train a network. A subclass overrides :meth:`step` and names its loss's equation and source.

    The base owns optimiser, schedule, metrics, logging, validation and what a checkpoint says of itself.

    Args:
        network: builds the network from the dataset's facts, e.g. ``networks.WideResNet`` with its own arguments.
        facts: the dataset's facts, or the same as a dictionary; the command line takes them from the data.
        optimizer: builds the optimiser from the parameters.
        scheduler: builds the learning-rate schedule from the optimiser; None keeps the rate.
        scheduler_interval: whether the schedule counts epochs or optimiser steps.
        noise: sources of noise in training (see :mod:`lightning_modules.noise`), applied in this order.
        rate_scaling: scales the optimiser's rate by the images of a step; None takes it as it is given.
        channels_last: fit with the weights of convolutions in the order in which they are fast (``docs/speed.md``).
        folding: craft on a copy of the network whose batch-norms are folded into its convolutions, unless the attack
            has them in train mode: the same function but for rounding, faster. A frozen teacher answers by one too.
        compile: fit with a compiled network, of which torch makes one graph for the weights' gradients and one for
            the images' alone. Validation and tests compute as without.

    Attributes:
        trained_at: temperature that the network's softmax is trained at; strong attacks divide by it.
        replays: how often each mini-batch is seen in a row (free adversarial training).
        attack: crafts training examples; only regimes that do so have one.
        has_teacher: whether a teacher takes part, whose word noise may disturb.
    """

    attack: Attack

    has_teacher: ClassVar[bool] = False
    trained_at: float = 1.0
    replays: int = 1

    def __init__(
        self,
        network: Callable[[Facts], nn.Module],
        facts: Facts | dict[str, Any],
        optimizer: OptimizerCallable = torch.optim.SGD,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        noise: list[Noise] | None = None,
        rate_scaling: RateScaling | None = None,
        channels_last: bool = True,
        folding: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # What a checkpoint needs to rebuild itself; from the command line these are plain values. What a regime fixes
        # for the classes that it builds on is no argument of its own.
        *inner, outer = collect_init_args(inspect.currentframe(), [])  # type: ignore[arg-type]
        self.save_hyperparameters(ignore=sorted({key for given in inner for key in given} - outer.keys()), logger=False)
        self.facts = Facts.of(facts)
        self._build = network
        self.network = network(self.facts)
        self.channels_last = channels_last
        self.folding = folding
        self.compiled = compile
        self.rate_scaling = rate_scaling
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.noise = noise or []
        if deaf := [type(source).__name__ for source in self.noise if source.needs_teacher and not self.has_teacher]:
            raise ValueError(f"{deaf[0]} disturbs a teacher, and {type(self).__name__} has none: use a distiller.")
        accuracy = MulticlassAccuracy(self.facts.classes, average="micro")
        self.val_accuracy, self.val_robust_accuracy, self.test_accuracy = (accuracy.clone() for _ in range(3))
        self.val_loss = MeanMetric()
        self.watch = Watch(self.facts.classes)
        self.means = Means()
        self._stand_in = StandIn(compile)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    # What a regime is

    @abstractmethod
    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        """One training step: the loss, and further scalars to log under ``train/``."""

    @property
    def hears_labels(self) -> bool:
        """Whether the labels have any word in training."""
        return True

    @property
    def threat(self) -> Threat | None:
        """The threat model that the regime trains against; None for a regime without an adversary."""
        return self.attack.threat if hasattr(self, "attack") else None

    @property
    def monitor(self) -> str:
        """The held-out figure that chooses the best checkpoint."""
        return "val/acc" if self.threat is None else "val/robust_acc"

    def bind(self, attack: Bound, climbs_kl: bool = False) -> Bound:
        """The attack in the dataset's box.

        Args:
            attack: the attack.
            climbs_kl: whether the regime gives it distributions to move away from, rather than labels.

        Raises:
            ValueError: where its loss does not fit that.
        """
        if (getattr(attack, "loss", None) == "kl") != climbs_kl:
            what = "along a KL divergence: give it attacks.PGD with" if climbs_kl else "against labels: not with"
            raise ValueError(f"{type(self).__name__} crafts its examples {what} loss: kl.")
        return attack.under(attack.threat.within(self.facts.box))

    def draws(self, batch: Batch) -> Draws:
        """This step's random draws: they follow from seed, step and image, whatever the batch or the process."""
        return Draws(batch.index, (self.seed, self.global_step, ATTACK))

    def craft(self, batch: Batch, target: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Adversarial versions of a batch's images against the network as it stands.

        Args:
            batch: the images and, unless ``target`` takes their place, the labels to move away from.
            target: distributions over the classes to move away from, (B, C), for attacks whose loss is ``kl``.
            temperature: what the network's logits are divided by.
        """
        y = batch.y if target is None else target
        return self.attack(tempered(self.searched(batch.x), temperature), batch.x, y, self.draws(batch))

    def searched(self, x: Tensor) -> nn.Module:
        """The network as its attack sees it, or a copy with its weights and with batch-norm folded, where there is any.

        Args:
            x: images to compare the copy on when it is made, and once in every epoch.
        """
        whole = not self.folding or self.attack.batchnorm == "train"
        return self.network if whole else self._stand_in(self.network, x)

    def untrained(self, seed: int) -> nn.Module:
        """The network's architecture with fresh weights of a seed of their own, on the module's device."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return self._build(self.facts).to(self.device).eval()

    def records(self) -> list[Record]:
        """Further figures of a test, for its table and its files."""
        return []

    # Noise

    def moments(self, batch: Batch) -> Iterator[tuple[Noise, Moment]]:
        """The sources of noise in their order, each with what it draws from."""
        for number, noise in enumerate(self.noise):
            yield noise, Moment(batch.index, (self.seed, NOISE, number), self.current_epoch, self.global_step)

    def disturbed(self, batch: Batch) -> Batch:
        """The batch as the student is shown it; it still holds the images without noise, for a teacher."""
        x, y = batch.x, batch.y
        for noise, moment in self.moments(batch):
            x, y = noise.on_images(x, moment), noise.on_labels(y, self.facts.classes, moment)
        if self.threat is not None:
            x = self.threat.clamp(x)  # attacks begin inside the box
        return batch._replace(x=x, y=y, undisturbed=batch.x)

    # What Lightning calls

    def on_train_end(self) -> None:
        # What is evaluated is then, to the last bit, what anybody computes who loads the checkpoint.
        self.network.to(memory_format=torch.contiguous_format)
        if self.compiled:
            self.network.compile(disable=True)
        self._stand_in = StandIn(self.compiled)

    def on_fit_start(self) -> None:
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.compiled:
            # In place, so that no weight is renamed. A graph for batches of any size would be used for all.
            self.network.compile(dynamic=False)
            rank_zero_info("The network is compiled in the first steps, which take longer.")
        for source in self.noise:
            if source.needs_labels and not self.hears_labels:
                rank_zero_warn(f"{type(source).__name__} changes nothing: here the labels have no word in training.")

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.rate_scaling is not None:
            self.rate_scaling.scale(optimizer, self.trainer)
        if self.scheduler is None:
            return optimizer
        return schedule(optimizer, self.scheduler, self.scheduler_interval, self.rate_scaling)

    def on_train_epoch_start(self) -> None:
        # Dropout draws from torch's generator; seeding it by epoch makes a resumed run the same run.
        torch.manual_seed(hash((self.seed, self.current_epoch, self.global_rank)))
        self._stand_in.compare()
        self.means = Means()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, logs = self.step(self.disturbed(batch) if self.noise else batch, batch_idx)
        self.watch.loss(loss)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and batch_idx % every == 0:  # where the logger looks anyway
            self._refuse_nan()
        self.log("train/loss_step", loss.detach(), prog_bar=True, on_step=True)
        self.means.add({"loss": loss} | logs, len(batch.y))
        return loss

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.watch.loss(self.val_loss.compute())
            self._refuse_nan()
            if self.threat is not None:
                self.watch.robust(float(self.val_robust_accuracy.compute()), self.current_epoch)

    def on_train_epoch_end(self) -> None:
        self._refuse_nan()  # before any checkpoint is written
        for key, mean, images in self.means:
            self.log(f"train/{key}", mean, sync_dist=True, batch_size=images)

    def _refuse_nan(self) -> None:
        self.watch.refuse_nan(self.global_step, self.current_epoch, self.trainer.optimizers[0].param_groups[0]["lr"])

    @torch.compiler.set_stance("force_eager")  # what is judged is what anybody computes who loads the checkpoint
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.network(batch.x)
        self.val_loss.update(nn.functional.cross_entropy(logits.float(), batch.y), len(batch.y))
        self.log("val/loss", self.val_loss, on_epoch=True, batch_size=len(batch.y))
        self.val_accuracy.update(logits, batch.y)
        self.log("val/acc", self.val_accuracy, prog_bar=True, on_epoch=True, batch_size=len(batch.y))
        # Lightning's check before the first epoch asks whether the data flows, not how robust chance is.
        if self.threat is not None and not self.trainer.sanity_checking:
            # The same draws in every epoch, so that epochs are compared by their weights alone.
            # In float32 whatever the training's precision, as a suite judges: bfloat16 hides small gains.
            with torch.autocast(batch.x.device.type, enabled=False):
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
            own = Facts.of(trained)
            self.facts.require(own, "The checkpoint")
            # It is the network that normalises, as it was trained to, whatever data it is shown now.
            self.facts = replace(self.facts, mean=own.mean, std=own.std)
            renormalise(self.network, own)
        self.watch.best = checkpoint.get("best_robust", 0.0)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            check_resumed(self.trainer, checkpoint, self.rate_scaling)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained_at"] = float(self.trained_at)
        checkpoint["best_robust"] = self.watch.best
        hparams = plain(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = hparams | {"facts": self.facts.to_dict()}
        if self.rate_scaling is not None:
            checkpoint["rate_factor"] = self.rate_scaling.factor(self.trainer)
