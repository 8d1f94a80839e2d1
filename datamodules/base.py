"""What every dataset shares: images in memory, three splits, and batches put together on the training device."""

import os
import textwrap
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from attacks.draws import Draws
from datamodules.augment import VIEWS, draw_views, shown
from datamodules.sampler import Indices, Shards, Split, SplitIndices
from datamodules.store import fits
from networks.base import Facts

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
        view: in which of its :attr:`Images.views` each image is shown, int64 (B,); 0 is the image as it is.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    undisturbed: Tensor | None = None
    view: Tensor | None = None

    @property
    def clean(self) -> Tensor:
        """The images without noise: what a teacher sees."""
        return self.x if self.undisturbed is None else self.undisturbed


class Images(pl.LightningDataModule, ABC):
    """A dataset of images (or of points in the plane).

    A dataset overrides :meth:`load` and :attr:`facts`, and ``prepare_data`` where it has something to download. Its
    images are moved to the training device as a whole, unless they are larger than
    :data:`datamodules.store.IN_MEMORY`: then batches are moved, and they stay where they are, such as in a mapped file.

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
    def views(self) -> int | None:
        """In how many ways an image may be shown in training; None where a dataset has batches of its own making."""
        if any(getattr(type(self), name) is not getattr(Images, name) for name in ("batch", "on_after_batch_transfer")):
            return None
        return VIEWS if self.augment else 1

    @property
    def training_images(self) -> Tensor:
        """The array that indices of training and validation point into, on the CPU; see :meth:`load`."""
        return self._source(True, torch.device("cpu"))[0]

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
        """Loads what the stage needs, once; for a fit the test images too, which are tested on after it.

        Raises:
            ValueError: if there is no class such as ``omit``, an image or a label contradicts the facts, or no
                training image is left.
        """
        _ = self.omitted  # before anything is loaded
        if stage in ("fit", "validate", None):
            self.split_index("train")
        # A test image that is broken or missing ends a fit here, not after its last epoch.
        if stage in ("fit", "test", "predict", None):
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

    def batch(
        self,
        split: Split,
        index: Tensor | None = None,
        augment_key: Sequence[int] | None = None,
        images: Tensor | None = None,
    ) -> Batch:
        """Puts a batch together, on the device of its index.

        Args:
            split: the split that the images belong to.
            index: positions in the split's source array, int64 (B,); None for the whole split in order, on the CPU.
            augment_key: integers that, with an image's index, fix its crop and flip; None for the image as it is.
            images: the images at ``index``, as they were loaded and on its device, where they are at hand.
        """
        index = self.split_index(split) if index is None else index
        source, labels = self._source(split != "test", index.device)
        x = source.index_select(0, index.to(source.device)).to(index.device) if images is None else images
        view = torch.zeros_like(index) if augment_key is None else draw_views(Draws(index, augment_key))
        x = x if augment_key is None else shown(x, view)
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        return Batch(x, labels.index_select(0, index), index, view=view)

    def on_after_batch_transfer(self, batch: Indices, dataloader_idx: int) -> Batch:
        """Turns the indices, now on the device, into images; a training image's crop follows from seed and epoch."""
        augmented = self.augment and batch.split == "train"
        key = (_run_seed(), self.trainer.current_epoch) if augmented and self.trainer else None
        return self.batch(batch.split, batch.index, key, batch.images)

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
        images, _ = self._source(split != "test", torch.device("cpu"))
        dataset = SplitIndices(split, self.split_index(split), None if fits(images) else images)
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
        return DataLoader(
            dataset,
            batch_size=size,
            sampler=sampler,
            collate_fn=SplitIndices.collate,
            generator=unused,
            pin_memory=not fits(images) and torch.cuda.is_available(),  # so that the device need not wait for the copy
        )

    def _source(self, train: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """The training or the test set on a device, read once and moved to it once; large images stay on the CPU."""
        if (train, device) not in self._sources:
            if device.type == "cpu":
                self._sources[train, device] = self._checked(*self.load(train))
            else:
                images, labels = self._source(train, torch.device("cpu"))
                self._sources[train, device] = images.to(device) if fits(images) else images, labels.to(device)
        return self._sources[train, device]

    def _checked(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        facts = self.facts
        if images.shape[1:] != facts.shape:
            raise ValueError(f"The images have shape {tuple(images.shape[1:])}, the dataset's facts say {facts.shape}.")
        if len(images) != len(labels):
            raise ValueError(f"There are {len(images)} images and {len(labels)} labels: each image needs one label.")
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
