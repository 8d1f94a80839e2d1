"""GTSRB, the German Traffic Sign Recognition Benchmark (Stallkamp et al. 2011): 43 kinds of sign."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from datamodules.annotations import photographs, read_annotations
from datamodules.published import Published
from datamodules.store import Entry, read_entries
from networks.base import Facts

NAMES = (
    "20 km/h",
    "30 km/h",
    "50 km/h",
    "60 km/h",
    "70 km/h",
    "80 km/h",
    "end of 80 km/h",
    "100 km/h",
    "120 km/h",
    "no overtaking",
    "no overtaking by lorries",
    "priority at next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no lorries",
    "no entry",
    "danger",
    "bend to the left",
    "bend to the right",
    "double bend",
    "bumpy road",
    "slippery road",
    "narrows on the right",
    "road works",
    "traffic lights",
    "pedestrians",
    "children",
    "bicycles",
    "snow or ice",
    "wild animals",
    "end of all limits",
    "right only",
    "left only",
    "straight on only",
    "straight on or right",
    "straight on or left",
    "pass on the right",
    "pass on the left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by lorries",
)


class _BothSplits(datasets.GTSRB):
    """The training set, which downloads the test set too."""

    def __init__(self, root: str, download: bool = False) -> None:
        if download:
            datasets.GTSRB(root, "test", download=True)
        super().__init__(root, "train", download=download)


class GTSRB(Published):
    """Traffic signs: the 26,640 + 12,630 photographs that torchvision downloads, each scaled to a square as a whole.

    The published boxes are read but not cut out, as in most published figures: a photograph shows a tenth of the sign's
    size around it. The training images are tracks of thirty of one physical sign, of which some are held out for
    validation and others are not: validation accuracies are too good. A mirrored sign is another sign, so augmentation
    is off by default.

    Args:
        root: folder that holds the downloads.
        size: height and width of the images, in pixels.
        kwargs: see :class:`Published`.
    """

    source = _BothSplits
    folder = "gtsrb"
    own = Facts(  # mean and deviation as others publish them for these training images
        classes=43,
        channels=3,
        size=32,
        mean=(0.3403, 0.3121, 0.3214),
        std=(0.2724, 0.2608, 0.2669),
        names=NAMES,
    )

    def __init__(self, root: str = "data", size: int = 32, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.size = size

    @property
    def facts(self) -> Facts:
        return replace(super().facts, size=self.size)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads the files.

        Raises:
            FileNotFoundError: if they are missing.
            ValueError: if a row of their tables is malformed, which the message names, or an image is broken.
        """
        entries, labels = [], []
        try:
            for table, folder in self._tables(train):
                rows = read_annotations(table, len(NAMES), header=True)
                entries += [Entry(file) for file in photographs(table, rows, folder)]
                labels += [row.label for row in rows]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.root}/{self.folder} does not hold GTSRB as torchvision unpacks it ({error}) Correct root, or "
                f"remove that folder to have it downloaded again."
            ) from error
        images, kept = read_entries(entries, self.size, 3, title=f"{self.root}/{self.folder}", square=False)
        return images, torch.tensor(labels)[kept]

    def _tables(self, train: bool) -> Iterator[tuple[Path, Path]]:
        """The tables and the folders of the images that they name."""
        home = Path(self.root).expanduser() / self.folder
        if not train:
            yield home / "GT-final_test.csv", home / "GTSRB" / "Final_Test" / "Images"
            return
        for label in range(len(NAMES)):
            folder = home / "GTSRB" / "Training" / f"{label:05}"
            yield folder / f"GT-{label:05}.csv", folder
