"""What a suite has done so far, kept on disk after every batch."""

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from attacks.base import Attack

NEEDED = ("where", "prediction", "rank", "linf", "l2", "forwards", "backwards", "seconds", "x_adv")


class State:
    """A folder with a file for every batch that an attack is done with; each appears whole or not at all.

    Args:
        root: where unfinished suites are kept; None keeps nothing.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.folder: Path | None = None

    def open(self, key: str) -> None:
        """Names the suite: one with other settings, weights or images has another key, and a folder of its own."""
        self.folder = None if self.root is None else self.root / key

    def _path(self, folder: Path, stage: str, batch: int) -> Path:
        return folder / f"{stage}-{batch:05d}.npz"

    def read(self, stage: str, batch: int, where: np.ndarray) -> dict[str, np.ndarray] | None:
        """What became of a batch's images, at these positions; None where it is not done yet."""
        if self.folder is None or not (path := self._path(self.folder, stage, batch)).exists():
            return None
        try:
            with np.load(path) as file:
                done = {name: file[name] for name in {*file.files, *NEEDED}}
        except (EOFError, KeyError, OSError, TypeError, ValueError, BadZipFile, zlib.error):
            return None  # cut short when the machine went down, or of another make: that batch is attacked again
        # Other positions would mean that an earlier stage was redone otherwise.
        return done if np.array_equal(done.pop("where"), where) else None

    def write(self, stage: str, batch: int, where: np.ndarray, done: Mapping[str, np.ndarray]) -> None:
        """Keeps what became of a batch."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(self.folder, stage, batch)
        partial = path.with_name(f".{path.stem}.{uuid4().hex}.partial.npz")  # the same suite may run twice at once
        np.savez(partial, where=where, **done)  # type: ignore[arg-type]
        os.replace(partial, path)

    def finish(self) -> None:
        """Removes the folder: the suite's results are kept elsewhere by now."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # it stays while it holds another suite, and another process may be the first
                self.folder.parent.rmdir()


def fingerprint(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    attacks: Mapping[str, Attack],
    settings: tuple[Any, ...],
) -> str:
    """A key of what decides a suite's result: weights, images and how they are batched, attacks, settings.

    What a model does beside its weights, buffers and printed form is seen by ``settings``, which hold its answers.
    """
    digest = hashlib.sha256(repr((_identity(model), settings)).encode())
    digest.update(repr({name: _described(attack) for name, attack in attacks.items()}).encode())
    for batch in batches:
        for tensor in batch:
            digest.update(_bytes(tensor))
        digest.update(b"|")
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    # A single element taken from every second is called contiguous, and has a stride of 2 all the same.
    whole = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return whole.flatten().view(torch.uint8).numpy().tobytes()


def _identity(model: nn.Module) -> str:
    """A hash of a module's printed form, parameters and buffers, those that are not saved included."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(name.encode() + _bytes(tensor))
    return digest.hexdigest()


def _described(value: Any) -> Any:
    """An attack's settings as plain values."""
    if isinstance(value, nn.Module):
        return _identity(value)
    if isinstance(value, Tensor):
        return hashlib.sha256(_bytes(value)).hexdigest()
    if isinstance(value, Attack):
        return type(value).__qualname__, {key: _described(part) for key, part in sorted(vars(value).items())}
    if isinstance(value, (list, tuple)):
        return [_described(part) for part in value]
    return repr(value)
