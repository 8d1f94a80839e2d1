"""CINIC-10 (Darlow et al. 2018): the ten classes of CIFAR-10, from CIFAR-10 itself and from ImageNet."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.base import Images
from datamodules.cifar10 import NAMES
from datamodules.image_folder import class_files
from datamodules.store import Broken, Entry, read_entries
from networks.base import Facts

CIFAR = "cifar"  # what the names of the images from CIFAR-10 begin with; the others bear ImageNet's synset


class CINIC10(Images):
    """Colour photographs, 32 by 32: ``root/{train,valid,test}/<class>/*.png``, 9,000 of each class in each folder.

    It is downloaded by hand from https://doi.org/10.7488/ds/2448 and unpacked. ``train`` and ``valid`` are
    joined, as its authors allow; validation images are held out of both by seed, as everywhere. Of each class 2,000
    images in each folder are CIFAR-10's: its whole test set is in ``test``, among as many of its training images.

    Args:
        root: the folder.
        augment: shift and mirror the training images.
        imagenet: test on the images from ImageNet alone (7,000 per class): what a model trained on CIFAR-10 knows of
            another distribution (*Noisy Collaboration in Knowledge Distillation*, A.3).
        per_class: test on so many images of each class, drawn by ``split_seed``; None for all. That paper has 2,100.
        broken: refuse the dataset if an image cannot be read, or skip that image with a warning.
        kwargs: see :class:`Images`.

    Raises:
        FileNotFoundError: if a folder is missing, or a class holds no images.
        ValueError: if there are other classes than CIFAR-10's, fewer images than are to be drawn, or an image cannot be
            read.
    """

    def __init__(
        self,
        root: str = "data/cinic10",
        augment: bool = True,
        imagenet: bool = False,
        per_class: int | None = None,
        broken: Broken = "refuse",
        **kwargs: Any,
    ) -> None:
        super().__init__(augment=augment, **kwargs)
        if per_class is not None and per_class < 1:
            raise ValueError(f"per_class is a number of images, at least 1, or null for all, got {per_class}.")
        self.root = Path(root)
        self.imagenet = imagenet
        self.per_class = per_class
        self.broken = broken

    @property
    def facts(self) -> Facts:
        # Its authors' figures.
        mean, std = (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587)
        return Facts(len(NAMES), 3, 32, mean, std, names=NAMES)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        if train:
            parts = [self._files("train"), self._files("valid")]
        else:
            generator = torch.Generator().manual_seed(self.split_seed)
            parts = [[self._tested(files, generator) for files in self._files("test")]]
        entries, labels = [], []
        for part in parts:
            for label, files in enumerate(part):
                entries += [Entry(file) for file in files]
                labels += [label] * len(files)
        images, kept = read_entries(entries, 32, 3, title=str(self.root), broken=self.broken)
        return images, torch.tensor(labels)[kept]

    def _files(self, part: str) -> list[list[Path]]:
        """The files of each class of one of the three parts."""
        folder = self.root / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}: download CINIC-10 from https://doi.org/10.7488/ds/2448 and "
                f"unpack it into {self.root}, or correct root."
            )
        files = class_files(folder)
        if tuple(files) != NAMES:
            raise ValueError(f"{folder} must hold CIFAR-10's classes {', '.join(NAMES)}, got {', '.join(files)}.")
        return list(files.values())

    def _tested(self, files: list[Path], generator: torch.Generator) -> list[Path]:
        """Those of a class's test images that are tested on."""
        chosen = [file for file in files if not (self.imagenet and file.name.startswith(CIFAR))]
        count = self.per_class or len(chosen)
        if not chosen or count > len(chosen):
            of = "from ImageNet " * self.imagenet
            raise ValueError(
                f"{files[0].parent} holds {len(chosen)} images {of}to test on, {max(count, 1)} are asked for: unpack "
                f"the archive again or lower per_class."
            )
        return [chosen[position] for position in torch.randperm(len(chosen), generator=generator)[:count].sort().values]
