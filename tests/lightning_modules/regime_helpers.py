"""Every regime at its smallest, and what is needed to look at it from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import lightning_modules
from attacks import PGD, Threat
from datamodules import Digits
from lightning_modules import (
    FGSMRS,
    NFGSM,
    RSLAD,
    TRADES,
    AdaAD,
    AdversarialTraining,
    Distiller,
    Regime,
    SelfDistillation,
    TeacherSource,
)
from lightning_modules.replay import Replayed
from lightning_modules.robust_distiller import RobustDistiller
from networks import MLP, DefensiveCNN, WideResNet

FACTS = Digits().facts
THREAT = Threat("linf", 0.15)
STEPS = 3  # of every attack here

mlp = partial(MLP, widths=(16,))
wrn = partial(WideResNet, depth=10, width=1)
fickle_wrn = partial(WideResNet, depth=10, width=1, dropout=0.3)
cnn = partial(DefensiveCNN, form="mnist", reduced=True, dropout=0.5)

# Every regime that the package exports: one that is added later is held to the same contract.
REGIMES: list[type[Regime]] = [
    found
    for name in lightning_modules.__all__
    if isinstance(found := getattr(lightning_modules, name), type) and issubclass(found, Regime)
    if found not in (Regime, Distiller)
]
DISTILLERS = [regime for regime in REGIMES if issubclass(regime, Distiller)]


def name(value: Any) -> str:
    """What a test calls a regime among its parameters."""
    return value.__name__ if isinstance(value, type) else str(value)


def pgd(**kwargs: Any) -> PGD:
    return PGD(**{"threat": THREAT, "steps": STEPS} | kwargs)


def build(regime: type[Regime], teacher: TeacherSource | None = None, **kwargs: Any) -> Regime:
    """A regime on digits; what is not given is small."""
    defaults: dict[str, Any] = {
        "network": mlp,
        "facts": FACTS,
        "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    }
    if issubclass(regime, Distiller):
        defaults["teacher"] = teacher
    if issubclass(regime, (RobustDistiller, AdversarialTraining)):
        defaults["attack"] = pgd()
    if issubclass(regime, (TRADES, RSLAD, AdaAD)):
        defaults["attack"] = pgd(loss="kl")
    if issubclass(regime, (FGSMRS, NFGSM)):
        del defaults["attack"]
        defaults["threat"] = THREAT
    if issubclass(regime, Replayed):
        defaults |= {"threat": THREAT, "replays": 2}
    if issubclass(regime, SelfDistillation):
        defaults["network"] = wrn
    return regime(**defaults | kwargs)


def trainer(folder: Path, **kwargs: Any) -> pl.Trainer:
    """A real trainer, on the CPU, of one short epoch."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(
            isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in kwargs.get("callbacks", [])
        ),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "max_epochs": 1,
        "limit_train_batches": 3,
        "limit_val_batches": 1,
    }
    return pl.Trainer(**defaults | kwargs)


def every_epoch(folder: Path) -> pl.callbacks.ModelCheckpoint:
    """Keeps the checkpoint of every epoch, as ``epoch=N.ckpt``."""
    return pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)


def digits(batch_size: int = 32, **kwargs: Any) -> Digits:
    return Digits(batch_size=batch_size, eval_batch_size=64, **kwargs)


def everything(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, those that a checkpoint leaves out included."""
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {key: value.detach().clone() for key, value in found.items()}


def assert_identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), f"{key} differs"


@contextmanager
def calls(module: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a module's forwards inside, in order."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


class Gradients(pl.Callback):
    """Keeps the weights' gradients of every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append({key: p.grad.clone() for key, p in pl_module.named_parameters() if p.grad is not None})


class Losses(pl.Callback):
    """Keeps the loss of every batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))
