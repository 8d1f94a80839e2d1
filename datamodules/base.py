"""What every dataset shares: images in memory, three splits, and batches put together on the training device."""

import os
import textwrap
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attacks.draws import Draws
from datamodules.augment import crop_and_flip
from datamodules.sampler import Shards
from networks.base import Facts

Split = Literal["train", "validation", "test"]

# The loaders hand out indices alone, so workers would only cost; Lightning cannot know.
warnings.filterwarnings("ignore", ".*does not have many workers.*")


class Batch(NamedTuple):
    """Images ready for a network.

    Attributes:
        x: float32 (B, C, H, W) in the dataset's box.
        y: labels, int64 (B,) in [0, classes).
        index: the images' positions in the array that they come from, int64 (B,). Training and validation images
            share the training set's array, so an index names one image for the whole of a run.
        undisturbed: the images before a regime's noise was added to them; None where there is none.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    undisturbed: Tensor | None = None

    @property
    def clean(self) -> Tensor:
        """The images without noise: what a teacher sees."""
        return self.x if self.undisturbed is None else self.undisturbed


class Indices(NamedTuple):
    """What a loader yields: which images of which split; the batch is put together once this is on the device."""

    split: Split
    index: Tensor  # type: ignore[assignment]  # as above


class _SplitIndices(Dataset[Indices]):
    """A split as a dataset of its indices, fetched a batch at a time."""

    def __init__(self, split: Split, index: Tensor) -> None:
        self.split = split
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, positions: list[int]) -> Indices:
        return Indices(self.split, self.index[torch.tensor(positions)])


def _identity(batch: Any) -> Any:
    return batch


class Images(pl.LightningDataModule, ABC):
    """A dataset of images (or of points in the plane) that fits in memory.

    A dataset overrides :meth:`load` and :attr:`facts`, and ``prepare_data`` where it has something to download.

    Args:
        batch_size: training images per batch and process.
        eval_batch_size: images per batch and process in validation, test and predict.
        augment: shift (by up to 4 pixels) and mirror the training images; the other splits never are.
        validation: share of the training set that is held out for validation, in [0, 1).
        split_seed: seed of that split; the same seed, the same split.
        omit: a class, in [0, classes), whose images are left out of training and validation; the test keeps them, and
            the suite says how well they are told. None leaves out none.

    Raises:
        ValueError: if ``validation`` is not in [0, 1).
    """

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        augment: bool = False,
        validation: float = 0.1,
        split_seed: int = 0,
        omit: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= validation < 1:
            raise ValueError(f"validation is the held-out share of the training set, in [0, 1), got {validation}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.augment = augment
        self.validation = validation
        self.split_seed = split_seed
        self.omit = omit
        self._sources: dict[tuple[bool, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What a network must know of the dataset; available before any image is loaded."""

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads the training or the test set.

        Returns:
            images: uint8 (N, C, H, W), scaled to [0, 1] in a batch; or float32 in the box, taken as they are.
            labels: int64 (N,) in [0, classes).
        """

    @property
    def omitted(self) -> tuple[int, str] | None:
        """The class that is left out and its name, its number again where it has none; None where none is left out.

        Raises:
            ValueError: if the dataset has no such class.
        """
        if self.omit is None:
            return None
        facts = self.facts
        if not 0 <= self.omit < facts.classes:
            names = f" ({textwrap.shorten(', '.join(facts.names), 200, placeholder=' …')})" if facts.names else ""
            raise ValueError(
                f"omit={self.omit} names no class: give one of 0 to {facts.classes - 1}{names}, or null for none."
            )
        return self.omit, facts.names[self.omit] if facts.names else str(self.omit)

    def setup(self, stage: str | None = None) -> None:
        """Loads what the stage needs, once.

        Raises:
            ValueError: if there is no class such as ``omit``, an image or a label contradicts the facts, or no
                training image is left.
        """
        _ = self.omitted  # before anything is loaded
        if stage in ("fit", "validate", None):
            self.split_index("train")
        if stage in ("test", "predict", None):
            self.split_index("test")

    def split_index(self, split: Split) -> Tensor:
        """The split's indices in ascending order, int64 (N,); those of train and validation are of one array."""
        labels = self._source(split != "test", torch.device("cpu"))[1]
        count = len(labels)
        if split == "test":
            return torch.arange(count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.split_seed))
        held_out = round(self.validation * count)
        if held_out == count:
            raise ValueError(f"Validation takes all {count} training images; lower validation={self.validation}.")
        index = (order[held_out:] if split == "train" else order[:held_out]).sort().values
        if self.omitted is None:
            return index
        omit, name = self.omitted
        # After the split, so that the other images are held out as they are where nothing is omitted.
        index = index[labels[index] != omit]
        if split == "train" and not len(index):
            raise ValueError(f"All training images are of the omitted class {name}: omit another or lower validation.")
        return index

    def batch(self, split: Split, index: Tensor | None = None, augment_key: Sequence[int] | None = None) -> Batch:
        """Puts a batch together, on the device of its index.

        Args:
            split: the split that the images belong to.
            index: positions in the split's source array, int64 (B,); None for the whole split in order, on the CPU.
            augment_key: integers that, with an image's index, fix its crop and flip; None for the image as it is.
        """
        index = self.split_index(split) if index is None else index
        images, labels = self._source(split != "test", index.device)
        x = images[index]
        if augment_key is not None:
            x = crop_and_flip(x, Draws(index, augment_key))
        return Batch(x.float() / 255 if x.dtype == torch.uint8 else x, labels[index], index)

    def on_after_batch_transfer(self, batch: Indices, dataloader_idx: int) -> Batch:
        """Turns the indices, now on the device, into images; a training image's crop follows from seed and epoch."""
        augmented = self.augment and batch.split == "train"
        key = (_run_seed(), self.trainer.current_epoch) if augmented and self.trainer else None
        return self.batch(batch.split, batch.index, key)

    def train_dataloader(self) -> DataLoader[Indices]:
        """Shuffled batches; a regime whose ``replays`` is above 1 sees each of them that many times in a row."""
        return self._loader("train", getattr(self.trainer and self.trainer.lightning_module, "replays", 1))

    def val_dataloader(self) -> DataLoader[Indices] | list[DataLoader[Indices]]:
        """The validation images in order; no loader at all where none are held out."""
        return self._loader("validation") if len(self.split_index("validation")) else []

    def test_dataloader(self) -> DataLoader[Indices]:
        """The test images in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Indices]:
        """The test images in order."""
        return self._loader("test")

    def _loader(self, split: Split, replays: int = 1) -> DataLoader[Indices]:
        train = split == "train"
        size = self.batch_size if train else self.eval_batch_size
        dataset = _SplitIndices(split, self.split_index(split))
        sampler = Shards(
            dataset,
            size,
            shuffle=train,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            seed=_run_seed(),
            replays=replays,
        )
        # A loader draws a seed for workers that it does not have; from torch's generator, that would shift dropout's
        # draws in a resumed fit.
        unused = torch.Generator()
        return DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=_identity, generator=unused)

    def _source(self, train: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """The training or the test set on a device, read once and moved to it once."""
        if (train, device) not in self._sources:
            if device.type == "cpu":
                self._sources[train, device] = self._checked(*self.load(train))
            else:
                images, labels = self._source(train, torch.device("cpu"))
                self._sources[train, device] = images.to(device), labels.to(device)
        return self._sources[train, device]

    def _checked(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        facts = self.facts
        if images.shape[1:] != facts.shape:
            raise ValueError(f"The images have shape {tuple(images.shape[1:])}, the dataset's facts say {facts.shape}.")
        if self.augment and facts.size == 1:
            raise ValueError("Points in the plane can be neither shifted nor mirrored; set augment to false.")
        wrong = ((labels < 0) | (labels >= facts.classes)).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"Label {int(labels[first])} of image {first} is not in [0, {facts.classes}): "
                f"the dataset has {facts.classes} classes."
            )
        return images, labels


def _run_seed() -> int:
    """The seed that Lightning's ``seed_everything`` left for every process; 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
