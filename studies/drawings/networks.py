"""Networks and test images of finished runs, for figures that look at them anew."""

from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from datamodules import Images
from lightning_modules.on_demand import checkpoint_in
from networks.checkpoint import Loaded, load_network
from studies.gather import Ran

PART = 50  # images at a time, whose Jacobian takes memory


def loaded(ran: Ran, checkpoint: str) -> Loaded:
    """A run's network with the weights that its study judges, ``best`` or ``last``, in eval mode on the CPU."""
    last = ran.folder / "checkpoints" / "last.ckpt"
    return load_network(last if checkpoint == "last" else checkpoint_in(ran.folder))


def data_of(ran: Ran) -> Images:
    """The dataset that a run was trained on."""
    return made(Images, yaml.safe_load((ran.folder / "config.yaml").read_text())["data"])


def made(kind: type, said: Any) -> Any:
    """An object from its class and arguments, as configs name them.

    Raises:
        ValueError: for what is no such class, or has no such arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    try:
        return parser.instantiate_classes(parser.parse_object({"it": said})).it
    except Exception as error:
        raise ValueError(f"{said} is no {kind.__name__}: {str(error).strip().splitlines()[-1].strip()}") from error


def first_images(data: Images, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Test images, drawn once, with labels and indices, a few at a time."""
    index = data.split_index("test")
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:count]]
    return [data.batch("test", part)[:3] for part in index.split(PART)]


def judging_config(ran: Ran, judge: str | None) -> dict[str, Any]:
    """The resolved config of a run's judging, by default of its first.

    Raises:
        ValueError: where none is complete.
    """
    folders = [folder for name, folder in ran.planned.judgings.items() if judge in (None, name) and folder.exists()]
    if not folders:
        raise ValueError("not judged")
    return yaml.safe_load((folders[0] / "config.yaml").read_text())
