"""TSRD, the Chinese Traffic Sign Recognition Database: 4,170 + 1,994 photographs of 58 kinds of sign."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.annotations import photographs, read_annotations
from datamodules.base import Images
from datamodules.store import Broken, Entry, read_entries
from networks.base import Facts

CLASSES = 58


class TSRD(Images):
    """Traffic signs, each cut out of its photograph by the published box and scaled to a square.

    It is downloaded by hand from https://nlpr.ia.ac.cn/pal/trafficdata/recognition.html. Classes are numbered from 0 to
    57 as published and have no names; some have no test image. A mirrored sign is another sign, so augmentation is off
    by default.

    Args:
        root: the folder that holds the other four.
        train: folder of the training images.
        test: folder of the test images.
        train_annotations: the training images' table; its format is that of :func:`read_annotations`.
        test_annotations: the test images' table.
        size: height and width of the images, in pixels; 256 in Zou et al. 2023.
        mean: per-channel mean to normalise by, in [0, 1]; 0.5 by default.
        std: per-channel standard deviation to normalise by, in [0, 1]; 0.25 by default.
        broken: refuse the dataset if an image cannot be read, or skip that image with a warning.
        kwargs: see :class:`Images`.

    Raises:
        FileNotFoundError: if a table or an image that it names is missing.
        ValueError: if a row is malformed, which the message names, or an image cannot be read.
    """

    def __init__(
        self,
        root: str = "data/tsrd",
        train: str = "train",
        test: str = "test",
        train_annotations: str = "TsignRecgTrain4170Annotation.txt",
        test_annotations: str = "TsignRecgTest1994Annotation.txt",
        size: int = 256,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        broken: Broken = "refuse",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.train = train
        self.test = test
        self.train_annotations = train_annotations
        self.test_annotations = test_annotations
        self.size = size
        self.mean = mean or [0.5] * 3
        self.std = std or [0.25] * 3
        self.broken = broken

    @property
    def facts(self) -> Facts:
        return Facts(CLASSES, 3, self.size, tuple(self.mean), tuple(self.std))

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        table = self.root / (self.train_annotations if train else self.test_annotations)
        folder = self.root / (self.train if train else self.test)
        rows = read_annotations(table, CLASSES)
        files = photographs(table, rows, folder)
        entries = [Entry(file, row.box, row.size) for file, row in zip(files, rows, strict=True)]
        images, kept = read_entries(entries, self.size, 3, title=str(folder), broken=self.broken, square=False)
        return images, torch.tensor([row.label for row in rows])[kept]
