"""CIFAR-10-C and CIFAR-100-C (Hendrycks & Dietterich 2019): CIFAR's test images, corrupted in nineteen ways."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Images
from datamodules.cifar10 import CIFAR10
from datamodules.cifar100 import CIFAR100

SEVERITIES = (1, 2, 3, 4, 5)
COUNTED = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRAS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # to validate by; no part of the mean error
PAGES = "https://doi.org/10.5281/zenodo.2535967 (CIFAR-10-C) and https://doi.org/10.5281/zenodo.3555552 (CIFAR-100-C)"


class CorruptedFiles:
    """The published files: ``NAME.npy`` for each of the nineteen corruptions and ``labels.npy``.

    A file holds n images at each of five severities, uint8 (5 n, 32, 32, 3), in the order of the test set; severity s
    is rows (s - 1) n to s n. They are memory-mapped, so that a part of the images costs a part of the reading.

    Args:
        root: the unpacked folder.

    Attributes:
        labels: of the n images, int64 (n,).

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is no array, or of another shape or kind.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        found = _mapped(self.root / "labels.npy")
        count = len(SEVERITIES)
        if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or not len(found) or len(found) % count:
            raise ValueError(
                f"{self.root / 'labels.npy'} holds {found.dtype} {found.shape}, expected an integer for each image at "
                f"each of {count} severities: unpack the archive again."
            )
        self.labels = found.reshape(count, -1)[0].astype(np.int64)
        if (found.reshape(count, -1) != self.labels).any():
            raise ValueError(
                f"{self.root / 'labels.npy'} labels the images otherwise at each severity: unpack the archive again."
            )
        self._images = {name: self._checked(self.root / f"{name}.npy") for name in (*COUNTED, *EXTRAS)}

    @property
    def name(self) -> str:
        """Which of the two it is, by the number of classes."""
        return "CIFAR-10-C" if self.labels.max() < 10 else "CIFAR-100-C"

    def read(self, corruption: str, severity: int, index: np.ndarray | None = None) -> Tensor:
        """Images in the order of an index into the test set, int (B,), or all: uint8 (B, 3, 32, 32).

        Raises:
            ValueError: for an unknown corruption or severity, or an index beyond the images.
        """
        if corruption not in self._images or severity not in SEVERITIES:
            raise ValueError(
                f"There is no {corruption!r} of severity {severity}: corruptions are {', '.join(self._images)}, "
                f"severities 1 to {SEVERITIES[-1]}."
            )
        count = len(self.labels)
        rows = self._images[corruption][(severity - 1) * count : severity * count]
        if index is not None and len(index) and not 0 <= index.min() <= index.max() < count:
            raise ValueError(f"{self.root} holds {count} images at each severity, image {index.max()} is asked for.")
        return torch.from_numpy(np.array(rows if index is None else rows[index])).permute(0, 3, 1, 2).contiguous()

    def _checked(self, path: Path) -> np.ndarray:
        images, shape = _mapped(path), (len(SEVERITIES) * len(self.labels), 32, 32, 3)
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(
                f"{path} holds {images.dtype} {images.shape}, expected uint8 {shape} as labels.npy has it: unpack the "
                f"archive again."
            )
        return images


def _mapped(path: Path) -> np.ndarray:
    """An array whose file is read where it is looked at."""
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no {path}: unpack the archive of {PAGES} and name its folder.") from error
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an array ({error}): unpack the archive again.") from error


class _Corrupted(Images):
    """What the two have in common; the training images are the clean dataset's."""

    files: str
    corruption: str
    severity: int

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        if train:
            return super().load(True)  # type: ignore[safe-super]  # of the dataset that it is mixed into
        found = CorruptedFiles(self.files)
        return found.read(self.corruption, self.severity), torch.from_numpy(found.labels)


class CIFAR10C(_Corrupted, CIFAR10):
    """CIFAR-10 with test images of one corruption at one severity.

    Args:
        corruption: its name, such as ``fog``.
        severity: from 1 to 5.
        files: folder of the published files.
        kwargs: see :class:`CIFAR10`.
    """

    def __init__(self, corruption: str, severity: int, files: str = "data/CIFAR-10-C", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.corruption, self.severity, self.files = corruption, severity, files


class CIFAR100C(_Corrupted, CIFAR100):
    """CIFAR-100 with test images of one corruption at one severity.

    Args:
        corruption: its name, such as ``fog``.
        severity: from 1 to 5.
        files: folder of the published files.
        kwargs: see :class:`CIFAR100`.
    """

    def __init__(self, corruption: str, severity: int, files: str = "data/CIFAR-100-C", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.corruption, self.severity, self.files = corruption, severity, files
