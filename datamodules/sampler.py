"""Which images a process sees in an epoch, and in which order."""

from collections.abc import Iterator, Sized
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

Split = Literal["train", "validation", "test"]


class Indices(NamedTuple):
    """What a loader yields: which images of which split; the batch is put together once this is on the device.

    Attributes:
        split: the split.
        index: the images' positions in the split's source array, int64 (B,).
        images: the images as they were loaded, (B, C, H, W), where the device does not hold them all.
    """

    split: Split
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    images: Tensor | None = None


class SplitIndices(Dataset[Indices]):
    """A split as a dataset of its indices, fetched a batch at a time.

    Args:
        split: the split.
        index: positions in the split's source array, int64 (N,).
        images: that array, where batches shall carry their images.
    """

    def __init__(self, split: Split, index: Tensor, images: Tensor | None = None) -> None:
        self.split = split
        self.index = index
        self.images = images

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, positions: list[int]) -> Indices:
        index = self.index[torch.tensor(positions)]
        return Indices(self.split, index, None if self.images is None else self.images.index_select(0, index))

    @staticmethod
    def collate(batch: Any) -> Any:
        """What is fetched a batch at a time is a batch already."""
        return batch


class Shards(DistributedSampler[int]):
    """One process's share of a dataset, as positions in [0, len(dataset)).

    Training shuffles by (seed, epoch) and gives every process equally many images, because all must take equally many
    steps; the up to ``world_size - 1`` images left over differ from epoch to epoch. Evaluation keeps the order and
    pads nothing, so that each image is counted once.

    It is a DistributedSampler so that Lightning tells it the epoch and does not put a padding one in its place.

    Args:
        dataset: anything with a length.
        batch_size: images per batch of this process; matters for ``replays`` alone.
        shuffle: True for training, False for evaluation.
        rank: this process, in [0, world_size).
        world_size: number of processes.
        seed: the run's seed, not negative.
        replays: how many times in a row each batch is emitted, as free adversarial training asks. Above 1 a last,
            partial batch is dropped: a perturbation that persists from batch to batch needs batches of one size.

    Raises:
        ValueError: if batches are to be replayed and this process's share does not fill a single one.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        *,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        replays: int = 1,
    ) -> None:
        super().__init__(dataset, world_size, rank, shuffle, seed)  # type: ignore[arg-type]  # needs a length alone
        self.count = len(dataset)
        self.batch_size = batch_size
        self.replays = replays
        share = self.count // world_size if shuffle else len(range(rank, self.count, world_size))
        self.num_samples = share if replays == 1 else share // batch_size * batch_size
        if replays > 1 and self.num_samples == 0:
            raise ValueError(f"Replaying needs at least one full batch of {batch_size}, there are {share} images.")

    def __len__(self) -> int:
        return self.num_samples * self.replays

    def __iter__(self) -> Iterator[int]:
        # numpy mixes a pair into one seed; a sum would give seed 0's epoch 1 the order of seed 1's epoch 0.
        order = np.random.default_rng((self.seed, self.epoch)).permutation if self.shuffle else np.arange
        mine = order(self.count)[self.rank :: self.num_replicas][: self.num_samples].tolist()
        for start in range(0, self.num_samples, self.batch_size):
            for _ in range(self.replays):
                yield from mine[start : start + self.batch_size]
