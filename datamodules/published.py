"""Datasets that torchvision downloads and reads."""

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from datamodules.base import Images
from networks.base import Facts
from networks.checkpoint import first_line

# What torchvision raises on a file that is missing, cut short or altered; it has no error of its own.
UNREADABLE = (RuntimeError, ValueError, AssertionError, EOFError)


class Published(Images):
    """A dataset with a page of its own, downloaded once into a folder.

    Args:
        root: folder that holds the downloads; created where it does not exist.
        mean: per-channel mean to normalise by, in [0, 1]; by default that of the training images.
        std: per-channel standard deviation to normalise by, in [0, 1]; by default that of the training images.
        kwargs: see :class:`Images`.
    """

    source: ClassVar[type[datasets.MNIST] | type[datasets.CIFAR10]]
    folder: ClassVar[str]  # where torchvision puts the files, below root
    own: ClassVar[Facts]  # with mean and deviation of the training images

    def __init__(
        self, root: str = "data", mean: list[float] | None = None, std: list[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.mean = self.own.mean if mean is None else tuple(mean)
        self.std = self.own.std if std is None else tuple(std)

    @property
    def facts(self) -> Facts:
        return replace(self.own, mean=self.mean, std=self.std)

    def prepare_data(self) -> None:
        """Downloads what is missing, one process at a time; torchvision holds it against the published checksums.

        The dataset's folder gets its name once it is complete, so a download that was stopped is begun again.

        Raises:
            ConnectionError: if the files cannot be fetched, or arrive broken.
        """
        root = Path(self.root).expanduser()
        root.mkdir(parents=True, exist_ok=True)
        # Where nothing can be written there is nothing to lock.
        lock = FileLock(root / f".{type(self).__name__}.lock") if os.access(root, os.W_OK) else nullcontext()
        try:
            with lock:
                if (root / self.folder).exists():
                    self.source(str(root), download=True)
                else:
                    self._download(root)
        except (URLError, HTTPException, ConnectionError, TimeoutError, *UNREADABLE) as error:
            raise ConnectionError(
                f"Could not download {type(self).__name__} to {self.root}/{self.folder} ({first_line(error)}): "
                f"connect to the internet or copy that folder from a machine that has it; remove it if it is broken."
            ) from error

    def _download(self, root: Path) -> None:
        unfinished = root / f".{type(self).__name__}.unfinished"
        if unfinished.exists():
            shutil.rmtree(unfinished)  # left by a download that was killed
        self.source(str(unfinished), download=True)
        (root / self.folder).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / self.folder).rename(root / self.folder)
        shutil.rmtree(unfinished)  # the archive, where it lay beside the folder

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads the files.

        Raises:
            FileNotFoundError: if they are missing or broken.
        """
        try:
            data = self.source(self.root, train=train)
        except (OSError, *UNREADABLE) as error:
            raise FileNotFoundError(
                f"{self.root}/{self.folder} does not hold {type(self).__name__} as torchvision unpacks it "
                f"({first_line(error)}): correct root, or remove that folder to have it downloaded again."
            ) from error
        images = torch.as_tensor(data.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(data.targets).long()
