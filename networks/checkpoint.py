"""Networks from files: a run's checkpoint, which says how it is built, or a plain state dict, which does not."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.base import Facts

Factory = Callable[[Facts], nn.Module]


@dataclass(frozen=True)
class Loaded:
    """A network from a file.

    Attributes:
        network: the network, in eval mode on the CPU.
        facts: what it was trained for; None for a plain state dict.
        trained_at: temperature of its training, 1 where the file does not say.
        sha256: hash of the file, the network's identity.
    """

    network: nn.Module
    facts: Facts | None
    trained_at: float
    sha256: str


def first_line(error: Exception) -> str:
    """What an error says first, for a sentence of ours to quote; its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's state dict, names and values, hexadecimal."""
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_network(path: str | Path, network: Factory | None = None, facts: Facts | None = None) -> Loaded:
    """Loads a network from a run's checkpoint or from a plain state dict.

    Args:
        path: the file. It is read with ``weights_only=True``: no code in it is run.
        network: builds the architecture; needed for a plain state dict, and for a checkpoint of a run whose network
            was given as a Python function.
        facts: the dataset's facts; needed where ``network`` is.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file that holds no weights, does not say its architecture, or does not fit ``network``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as weights alone ({first_line(error)}): "
            "save it again as a plain state dict with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a checkpoint or a state dict.")
    hparams = content.get("hyper_parameters", {})
    spec, own_facts = hparams.get("network"), hparams.get("facts")
    if own_facts is not None:
        facts = Facts(**own_facts)
        weights = {
            key.removeprefix("network."): value
            for key, value in content["state_dict"].items()
            if key.startswith("network.")
        }
    else:
        weights = _plain_weights(content)
    if network is None and spec is not None:
        network = _factory(spec, path)
    if network is None or facts is None:
        raise ValueError(
            f"{path} does not say which architecture its weights belong to: "
            "name it beside the file, e.g. network: {class_path: networks.WideResNet, init_args: {depth: 34}}."
        )
    module = network(facts)
    _fill(module, weights, path)
    trained_at = content.get("trained_at", 1.0)
    return Loaded(module.eval(), None if own_facts is None else facts, trained_at, file_hash(path))


def _factory(spec: Any, path: Path) -> Factory:
    """The factory that a checkpoint's hyper-parameters name."""
    try:
        name, _, attribute = spec["class_path"].rpartition(".")
        cls = getattr(import_module(name), attribute)
    except (TypeError, KeyError, ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} was made with the network {spec}, which cannot be imported here ({error}): "
            "put its module on the path, or name the architecture beside the file."
        ) from error
    return lambda facts: cls(facts, **spec.get("init_args", {}))


def _plain_weights(content: dict[str, Any]) -> dict[str, Any]:
    """The state dict in a published file: perhaps under a key of its own, perhaps with DataParallel's prefix."""
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content.get(key), dict):
            content = content[key]
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _fill(module: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Loads weights strictly, except for a block that some published WideResNets carry and never use."""
    strange = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if strange or not weights:
        what = f"an entry {strange[0]} that is no tensor" if strange else "no weights"
        raise ValueError(f"{path} holds {what}, expected a state dict.")
    expected = module.state_dict()
    weights = {key: value for key, value in weights.items() if key in expected or not key.startswith("sub_block1.")}
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    wrong = [
        f"{key} {tuple(weights[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if missing or unknown or wrong:
        raise ValueError(
            f"The weights in {path} do not fit {type(module).__name__}: {len(missing)} missing, {len(unknown)} "
            f"unknown, {len(wrong)} of another shape, the first being {(wrong + missing + unknown)[0]}."
        )
    module.load_state_dict(weights)
