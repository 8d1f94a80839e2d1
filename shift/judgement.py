"""What networks say of images, clean or shifted."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor, nn

from attacks.crafting import crafting
from attacks.engine import full_precision
from interpret.calibration import Answers, Batch, checked

KEPT = ("prediction", "rank", "confidence", "nll")  # of every image


@dataclass(frozen=True)
class Judgement(Answers):
    """What one network says of every image, at T = 1.

    Attributes:
        rank: how many classes it prefers to the true one, (n,); 0 where it is right.
        index: the images' indices in their dataset, (n,).
        label: their true classes, (n,).
    """

    rank: np.ndarray
    index: np.ndarray
    label: np.ndarray

    @classmethod
    def told(cls, logits: Tensor, y: Tensor, index: Tensor) -> Self:
        """What logits (B, classes), in float64, say of images with labels y and indices, (B,) each."""
        said = Answers.of(logits, y)
        before = (logits > logits.gather(1, y[:, None])).sum(1).cpu().numpy()
        # Of classes that tie, the first is predicted.
        rank = np.where(said.correct, 0, np.maximum(before, 1))
        return cls(**vars(said), rank=rank, index=index.cpu().numpy(), label=y.cpu().numpy())

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """Of all images in the order of their index, each once, from those of the processes that share them."""
        whole = cls.joined(parts)
        order = np.unique(whole.index, return_index=True)[1]
        return cls(*(getattr(whole, field.name)[order] for field in fields(cls)))

    @property
    def gaps(self) -> np.ndarray:
        """``±(confidence - correct)`` with the sign of the image's bin, (n,): their mean is the calibration error."""
        bins = self.reliability()
        place = np.digitize(self.confidence, bins.edges[1:-1])
        return np.sign(bins.confidence - bins.accuracy)[place] * (self.confidence - self.correct)


def judgements(networks: Mapping[str, nn.Module], batches: Iterable[Batch]) -> dict[str, Judgement]:
    """What each network says of the same images, in float32; the networks are left as they were.

    Args:
        networks: map images (B, C, H, W) to logits (B, classes), by name.
        batches: (images, labels (B,), indices (B,)), on the networks' device; each is asked for once.

    Raises:
        ValueError: for no images, logits that are not finite, or labels that there is no class for.
    """
    parts: dict[str, list[Judgement]] = {name: [] for name in networks}
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(crafting(network))
        for context in (torch.no_grad(), full_precision()):
            stack.enter_context(context)
        for x, y, index in batches:
            for name, network in networks.items():
                parts[name].append(Judgement.told(checked(network(x).double(), y, name), y, index))
    if not all(parts.values()):
        raise ValueError("A network was to be judged on no images: give at least one batch.")
    return {name: Judgement.joined(found) for name, found in parts.items()}


def keep(path: Path, said: Mapping[str, Judgement]) -> None:
    """Writes one row per image to a Parquet file, which ``python -m attacks.compare`` reads.

    Args:
        path: of the file.
        said: what was said of the same images, by what was done to them; ``clean`` is one of them.
    """
    first = next(iter(said.values()))
    columns = {"index": first.index, "label": first.label}
    for name, judgement in said.items():
        columns |= {f"{column}/{name}": getattr(judgement, column) for column in KEPT}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
