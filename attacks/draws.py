"""Random draws that belong to an image, not to the batch that it happens to sit in.

A draw is a pure function of (seed, image index, position), so it is the same for any batch size, order, device or
number of processes, and a resumed run repeats it without any generator's state being saved. The function is the
finaliser of SplitMix64 (Steele, Lea & Flood 2014), applied to a counter: integer arithmetic alone, exact everywhere.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

WORD = (1 << 64) - 1


def _signed(value: int) -> int:
    """The two's-complement reading of a 64-bit word: torch has no unsigned 64-bit arithmetic."""
    value &= WORD
    return value - (1 << 64) if value >> 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, elementwise on int64 words (shifts are made logical by masking the sign's copies)."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _mix_word(z: int) -> int:
    """The same of one unsigned word, for which a tensor's operations would take far longer than its arithmetic."""
    z = ((z ^ (z >> 30)) * MIX_1) & WORD
    z = ((z ^ (z >> 27)) * MIX_2) & WORD
    return z ^ (z >> 31)


def hashed(x: Tensor) -> Tensor:
    """A hash of all the bits of every image, int64 (B,): their sum modulo 2**64, weighted by random odd words.

    Two images share it by chance once in 2**40 or less often, which takes into account that the last 23 bits of two
    floats may well be the same.
    """
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    bits = x.detach().contiguous().view(words).flatten(1).long()
    weights = _mix(torch.arange(bits.shape[1], device=x.device) * GOLDEN) | 1
    return (bits * weights).sum(1)


class Draws:
    """A stream of draws for each image of a batch.

    Args:
        index: the images' indices in their dataset, int64 of shape (B,); an image's draws follow from its index.
        seed: one or more integers that tell this use apart from others, such as (run's seed, epoch).
    """

    def __init__(self, index: Tensor, seed: int | Sequence[int] = 0) -> None:
        self.index = index.long()
        self.seeds = (seed,) if isinstance(seed, int) else tuple(seed)
        self._drawn = 0

    @cached_property
    def _keys(self) -> Tensor:
        """A word for each image, mixed from its index and the seeds; not every stream is ever drawn from."""
        word = 0
        for part in self.seeds:
            word = _mix_word((word + part + GOLDEN) & WORD)
        return _mix(_mix(self.index * GOLDEN + GOLDEN) + _signed(word))

    @classmethod
    def fresh(cls, count: int, device: torch.device) -> "Draws":
        """Draws for ``count`` images that have no index, seeded by torch's global generator (of the CPU: no sync)."""
        seed = int(torch.randint(1 << 62, ()))
        return cls(torch.arange(count, device=device), seed)

    def __getitem__(self, kept: Tensor) -> "Draws":
        """The same draws for a part of the batch, chosen by a mask or by positions."""
        part = Draws(self.index[kept], self.seeds)
        part._drawn = self._drawn
        return part

    def stream(self, number: int) -> "Draws":
        """Fresh draws for a part of an attack, such as a restart, whatever the parts before it have drawn."""
        return Draws(self.index, (*self.seeds, number))

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform draws in [low, high), float32 of shape (B, *shape); each call continues every image's stream."""
        size = math.prod(shape)
        counter = torch.arange(self._drawn, self._drawn + size, device=self.index.device)
        self._drawn += size
        words = _mix(self._keys[:, None] + counter * GOLDEN)
        unit = ((words >> 40) & ((1 << 24) - 1)).float() * 2.0**-24  # the 24 bits that a float32 holds exactly
        return (low + (high - low) * unit).view(-1, *shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal draws of shape (B, *shape), by Box and Muller's transform of two uniform ones."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(shape))

    def integers(self, high: int) -> Tensor:
        """One integer in [0, high) for each image, int64 of shape (B,)."""
        return (self.uniform((1,)).double() * high).long().view(-1)


class OfficialDraws(Draws):
    """The draws of the authors' AutoAttack: one generator for the batch, seeded anew for every batch and attack.

    What an image draws then depends on its batch. It serves to compare with published figures, image by image.
    """

    def __init__(self, index: Tensor, seed: int, generator: torch.Generator | None = None) -> None:
        self.index = index
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed) if generator is None else generator

    def __getitem__(self, kept: Tensor) -> "OfficialDraws":
        return OfficialDraws(self.index[kept], self.seed, self.generator)

    def stream(self, number: int) -> "OfficialDraws":
        return self

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        unit = torch.rand(len(self.index), *shape, generator=self.generator).to(self.index.device)
        return low + (high - low) * unit

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(len(self.index), *shape, generator=self.generator).to(self.index.device)
