"""A person's own images: one folder per class."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from datamodules.base import Images
from datamodules.store import Broken, Entry, read_entries
from networks.base import Facts


class ImageFolder(Images):
    """Images in folders named after their classes: ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Where ``root`` holds the class folders themselves, a share of every class is held out for the test. Images are
    read at any depth below a class; names that begin with a dot are passed over. Labels follow the sorted names.

    Args:
        root: the folder.
        size: height and width that every image is brought to, in pixels: the largest centred square is scaled. An
            image that has this size already is left as it is.
        channels: 3 for colour, 1 for grey.
        mean: per-channel mean of the images, in [0, 1]; 0.5 by default.
        std: per-channel standard deviation, in [0, 1]; 0.25 by default.
        train: name of the training images' folder.
        test: name of the test images' folder.
        test_fraction: share of each class held out where there are no such two folders, in (0, 1); at least one image.
            ``split_seed`` chooses which.
        broken: refuse the folder if an image cannot be read, or skip that image with a warning.
        cache: folder that keeps the images as they are once read, at ``size``; by default ``$TEMPERED_CACHE``, or
            ``~/.cache/tempered`` where that is unset. See :func:`read_entries`.
        kwargs: see :class:`Images`.

    Raises:
        FileNotFoundError: if a folder is missing, holds no classes, or a class holds no images.
        ValueError: if the classes are fewer than 2 or differ between train and test, if an image cannot be read and
            ``broken`` is to refuse, or if a class loses its last image by skipping.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        train: str = "train",
        test: str = "test",
        test_fraction: float = 0.2,
        broken: Broken = "refuse",
        cache: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if channels not in (1, 3):
            raise ValueError(f"Images are read with 1 channel (grey) or 3 (colour), got channels={channels}.")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction is a share of each class, in (0, 1), got {test_fraction}.")
        self.root = Path(root)
        self.size = size
        self.channels = channels
        self.mean = mean or [0.5] * channels
        self.std = std or [0.25] * channels
        self.train = train
        self.test = test
        self.test_fraction = test_fraction
        self.broken = broken
        self.cache = cache

    @property
    def facts(self) -> Facts:
        """The facts, classes read from the folders' names."""
        names = tuple(self._files[True])
        return Facts(len(names), self.channels, self.size, tuple(self.mean), tuple(self.std), names=names)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        files = self._files[train]
        entries = [Entry(path) for of_class in files.values() for path in of_class]
        labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(paths) for paths in files.values()]))
        title = f"{self.root} ({'training' if train else 'test'} images)"
        images, kept = read_entries(
            entries, self.size, self.channels, title=title, cache=self.cache, broken=self.broken
        )
        labels = labels[kept]
        if empty := [name for label, name in enumerate(files) if label not in labels]:
            raise ValueError(f"No image of {', '.join(empty)} can be read in {title}: mend them or remove the class.")
        return images, labels

    @cached_property
    def _files(self) -> dict[bool, dict[str, list[Path]]]:
        """The files of each class, of the training set (True) and of the test set (False)."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {self.root}: root must name the folder with your images.")
        train, test = self.root / self.train, self.root / self.test
        if not (train.is_dir() or test.is_dir()):
            return self._held_out(class_files(self.root))
        for folder, other in ((train, test), (test, train)):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"There is {other} but no {folder}: give both, or class folders in {self.root}."
                )
        files = {True: class_files(train), False: class_files(test)}
        if different := sorted(files[True].keys() ^ files[False].keys()):
            raise ValueError(f"{train} and {test} must hold the same classes, but differ in {', '.join(different)}.")
        return files

    def _held_out(self, files: dict[str, list[Path]]) -> dict[bool, dict[str, list[Path]]]:
        generator = torch.Generator().manual_seed(self.split_seed)
        split: dict[bool, dict[str, list[Path]]] = {True: {}, False: {}}
        for name, paths in files.items():
            count = max(1, round(self.test_fraction * len(paths)))
            if count == len(paths):
                raise ValueError(
                    f"{self.root / name} holds {count} image(s), which a test_fraction of {self.test_fraction} takes "
                    f"all: add images or lower it."
                )
            order = torch.randperm(len(paths), generator=generator).tolist()
            split[False][name] = [paths[position] for position in sorted(order[:count])]
            split[True][name] = [paths[position] for position in sorted(order[count:])]
        return split


def class_files(folder: Path) -> dict[str, list[Path]]:
    """The image files below each class folder, classes and files in sorted order.

    Raises:
        FileNotFoundError: if there are no class folders, or one holds no images.
        ValueError: if there is one class alone.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise FileNotFoundError(
            f"{folder} holds no class folders: put the images of each class in a folder of its own."
        )
    if len(classes) < 2:
        raise ValueError(f"{folder} holds one class folder ({classes[0].name}): a classifier needs at least two.")
    files = {path.name: [file for file in sorted(path.rglob("*")) if _is_image(file, path)] for path in classes}
    for name, found in files.items():
        if not found:
            raise FileNotFoundError(
                f"{folder / name} holds no images ({', '.join(IMG_EXTENSIONS)}): add some or remove it."
            )
    return files


def _is_image(path: Path, folder: Path) -> bool:
    # A hidden folder, such as a notebook's checkpoints, holds copies: of test images among the training ones, perhaps.
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    # A link that leads nowhere is no folder: it is named when it is read.
    return path.suffix.lower() in IMG_EXTENSIONS and not hidden and not path.is_dir()
