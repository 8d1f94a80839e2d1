"""Ways to train small networks that differ in one thing alone, as configs of the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 640


def mlp() -> dict[str, Any]:
    return {"class_path": "networks.MLP", "init_args": {"widths": [128]}}


def wrn(width: int = 1) -> dict[str, Any]:
    return {"class_path": "networks.WideResNet", "init_args": {"depth": 10, "width": width}}


def cnn(reduced: bool = False) -> dict[str, Any]:
    return {"class_path": "networks.DefensiveCNN", "init_args": {"form": "mnist", "reduced": reduced}}


def threat() -> dict[str, Any]:
    return {"norm": "linf", "eps": 0.15}


def pgd() -> dict[str, Any]:
    """What arms train against."""
    return {"class_path": "attacks.PGD", "init_args": {"threat": threat(), "steps": 7}}


@dataclass(frozen=True)
class Arm:
    """One way to train a network.

    Attributes:
        regime: the regime's name.
        options: its arguments, beside network, teacher, optimiser and schedule.
        network: the network's spec.
        teacher: name of the arm that teaches it.
        omit: the digit that is left out of its training set.
    """

    regime: str
    options: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=mlp)
    teacher: str | None = None
    omit: int | None = None


def config(arm: Arm, seed: int, teacher: Path | None, suite: dict[str, Any]) -> dict[str, Any]:
    """An arm as the command line's config: on scikit-learn's digits, 640 updates of 64 images.

    Args:
        arm: the arm.
        seed: of weights, batches and noise.
        teacher: its teacher's checkpoint.
        suite: what is tested afterwards.
    """
    model: dict[str, Any] = {
        "network": arm.network,
        **arm.options,
        "optimizer": {
            "class_path": "torch.optim.SGD",
            "init_args": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        },
        "scheduler": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": STEPS}},
        "scheduler_interval": "step",
    }
    if teacher is not None:
        model["teacher"] = {"checkpoint": str(teacher)}
    return {
        "seed_everything": seed,
        "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 64, "omit": arm.omit}},
        "model": {"class_path": f"lightning_modules.{arm.regime}", "init_args": model},
        "trainer": {
            "max_steps": STEPS,
            "max_epochs": -1,
            "accelerator": "cpu",
            "log_every_n_steps": 10,
            "enable_progress_bar": False,
        },
        "suite": suite,
    }
