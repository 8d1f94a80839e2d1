"""Checkpoints of networks that were never trained, as a run writes them."""

from pathlib import Path
from typing import Any

import torch

import networks
from networks import Facts


def checkpoint(path: Path, name: str, facts: Facts, seed: int, trained_at: float = 1.0, **init: Any) -> Path:
    """The weights of ``networks.NAME`` as the seed draws them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = getattr(networks, name)(facts, **init).state_dict()
    hparams = {"network": {"class_path": f"networks.{name}", "init_args": init}, "facts": facts.to_dict()}
    state = {f"network.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": state, "hyper_parameters": hparams, "trained_at": trained_at}, path)
    return path
