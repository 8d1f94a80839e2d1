"""Where corrupted images come from: the published files, or the generator."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.corrupted import COUNTED, EXTRAS, SEVERITIES, CorruptedFiles
from interpret.calibration import Batch
from shift.generator import COLOURED, CORRUPTIONS, corrupt


class Corruptions(ABC):
    """Corruptions of a test set's images.

    Args:
        severities: those that are asked for, from 1 to 5; all by default.

    Raises:
        ValueError: for no severities, unknown ones, or one twice.
    """

    source: str  # what its figures are called

    def __init__(self, severities: Sequence[int] = SEVERITIES) -> None:
        if not severities or not set(severities) <= set(SEVERITIES) or len(set(severities)) < len(severities):
            raise ValueError(f"severities are some of 1 to {SEVERITIES[-1]}, each once, got {list(severities)}.")
        self.severities = tuple(sorted(severities))

    @property
    def name(self) -> str:
        """What its figures are called, with the severities where they are not all."""
        if self.severities == SEVERITIES:
            return self.source
        return f"{self.source} at severity {', '.join(map(str, self.severities))}"

    @abstractmethod
    def kinds(self, batches: Iterable[Batch]) -> tuple[str, ...]:
        """The corruptions that there are of these images, those that count towards the mean error first.

        Args:
            batches: (images (B, C, H, W) in [0, 1], labels (B,), indices (B,)).

        Raises:
            ValueError: if there are none of them.
        """

    @abstractmethod
    def __call__(self, kind: str, severity: int, x: Tensor, index: Tensor) -> Tensor:
        """The corrupted images, float32 (B, C, H, W) in [0, 1], of clean ones and their indices, on their device."""


class CIFARC(Corruptions):
    """The published CIFAR-10-C or CIFAR-100-C; the tested images must be in the order of CIFAR's own test set.

    Args:
        root: the unpacked folder.
        severities: those that are asked for, from 1 to 5; all by default.
    """

    def __init__(self, root: str, severities: Sequence[int] = SEVERITIES) -> None:
        super().__init__(severities)
        self.files = CorruptedFiles(root)
        self.source = self.files.name

    def kinds(self, batches: Iterable[Batch]) -> tuple[str, ...]:
        for x, y, index in batches:
            if x.shape[1:] != (3, 32, 32):
                raise ValueError(f"{self.source} is of images (3, 32, 32), the tested ones are {tuple(x.shape[1:])}.")
            labels, where = y.cpu().numpy(), index.cpu().numpy()
            known = where < len(self.files.labels)
            wrong = ~known | (self.files.labels[np.where(known, where, 0)] != labels)
            if wrong.any():
                raise ValueError(
                    f"Image {where[wrong][0]} of the test set is not that of {self.files.root}: its files follow the "
                    f"order of CIFAR's own test set (datamodules.CIFAR10 or CIFAR100), which a folder of images does "
                    f"not; use shift.CIFARCLike there."
                )
        return (*COUNTED, *EXTRAS)

    def __call__(self, kind: str, severity: int, x: Tensor, index: Tensor) -> Tensor:
        return self.files.read(kind, severity, index.cpu().numpy()).to(x.device).float() / 255


class CIFARCLike(Corruptions):
    """Images that are made here with CIFAR-C's constants (see :mod:`shift.generator`); they are not CIFAR-10-C.

    Args:
        severities: those that are asked for, from 1 to 5; all by default.
        seed: what is drawn follows from it, from corruption and severity, and from an image's index.
    """

    source = "CIFAR-C-like"

    def __init__(self, severities: Sequence[int] = SEVERITIES, seed: int = 0) -> None:
        super().__init__(severities)
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        self.seed = seed

    def kinds(self, batches: Iterable[Batch]) -> tuple[str, ...]:
        x, _, index = next(iter(batches))
        self(COUNTED[0], self.severities[0], x[:1], index[:1])  # refuses what cannot be corrupted
        grey = x.shape[1] == 1
        return tuple(kind for kind in (*COUNTED, *EXTRAS) if kind in CORRUPTIONS and not (grey and kind in COLOURED))

    def __call__(self, kind: str, severity: int, x: Tensor, index: Tensor) -> Tensor:
        made = corrupt(x.float().cpu().numpy(), index.tolist(), kind, severity, self.seed)
        return torch.from_numpy(made).to(x.device)
