"""Image files, decoded once: in parallel, into a cache of our own, which is memory-mapped where it is large."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from pytorch_lightning.utilities import rank_zero_warn
from rich.markup import escape
from rich.progress import track
from torch import Tensor

VERSION = 1  # of what read_image makes of a file; another version reads anew
IN_MEMORY = 1 << 30  # bytes; a larger set is never held in memory, nor on the device, as a whole
AT_ONCE = 64 << 20  # bytes of images that may be decoded before they are written
NAMED = 3  # broken images in a message

Broken = Literal["refuse", "skip"]


@dataclass(frozen=True)
class Entry:
    """An image to read.

    Attributes:
        path: its file.
        box: x1, y1, x2, y2 in pixels of the upright image, x2 and y2 exclusive: the part of it that is meant. None for
            all of it.
        size: width and height of the image that the box is of; None where nobody says.
    """

    path: Path
    box: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None


def fits(images: Tensor) -> bool:
    """Whether a set is small enough to be held in memory, and on the device, as a whole: :data:`IN_MEMORY`."""
    return images.nbytes <= IN_MEMORY


def cache_folder() -> Path:
    """Where what is costly to make again is kept: ``$TEMPERED_CACHE``, or ``~/.cache/tempered`` where that is unset."""
    return Path(os.environ.get("TEMPERED_CACHE") or Path.home() / ".cache" / "tempered")


def read_entries(
    entries: Sequence[Entry],
    size: int,
    channels: int,
    *,
    title: str,
    cache: str | Path | None = None,
    broken: Broken = "refuse",
    square: bool = True,
) -> tuple[Tensor, Tensor]:
    """Reads images from the cache, where they are put when they are read for the first time.

    They are read anew once a path, a file's size or time, or an argument is another. Processes that ask for the same
    images at once wait for the first; what a killed one leaves is never taken for whole.

    Args:
        entries: the images.
        size: height and width that they are brought to, in pixels.
        channels: 3 for colour, 1 for grey.
        title: what the images are called on the progress bar and in messages.
        cache: folder for the decoded images; None for ``$TEMPERED_CACHE``, or ``~/.cache/tempered`` where that is
            unset. It may be removed at any time.
        broken: refuse the set if an image cannot be read, or skip that image with a warning.
        square: scale the largest centred square; False: the whole image, whatever its proportions.

    Returns:
        images: uint8 (N, channels, size, size); beyond :data:`IN_MEMORY` bytes mapped from the cache, copied on write.
        kept: the positions in ``entries`` of these N, ascending, int64 (N,).

    Raises:
        ValueError: if an image cannot be read and ``broken`` is to refuse, if not a single one can or there is none, or
            if the cache was altered.
        OSError: if a file is missing or may not be read, or the cache may not be written or is full.
    """
    if not entries:
        raise ValueError(f"{title} holds no images to read.")
    folder = cache_folder() if cache is None else Path(cache)
    store = folder / _key(entries, size, channels, square)
    if not store.exists():
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{store.name}.lock"):
            if not store.exists():
                unfinished = folder / f".{store.name}.unfinished"
                unfinished.mkdir(exist_ok=True)
                read = partial(read_image, size=size, channels=channels, square=square)
                _decode(entries, read, max(1, AT_ONCE // (channels * size**2)), title, unfinished)
                unfinished.rename(store)
    faults = {int(position): fault for position, fault in json.loads((store / "broken.json").read_text()).items()}
    if faults:
        _complain(faults, len(entries), title, broken)
    kept = torch.tensor([position for position in range(len(entries)) if position not in faults])
    return _load(store / "images", (len(kept), channels, size, size)), kept


def read_image(entry: Entry, size: int, channels: int, square: bool = True) -> Tensor:
    """Reads an image, upright as its camera meant it, as uint8 (channels, size, size).

    Raises:
        ValueError: if it is no image, is broken, has more than 8 bits per channel or another size than stated, or does
            not contain the box.
    """
    try:
        with Image.open(entry.path) as file:
            if file.mode.startswith(("I", "F")):  # conversion would clip every value above 255 to white
                raise ValueError("it has more than 8 bits per channel")
            image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
        if entry.size not in (None, image.size):
            raise ValueError(f"it is {image.size} pixels large, but its box is of an image of {entry.size}")
        if entry.box is not None:
            image = _cut(image, entry.box)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's fault says nothing of the image
            raise
        raise ValueError(f"{entry.path}: {error}") from error
    if image.size != (size, size):
        scale = ImageOps.fit if square else Image.Image.resize
        image = scale(image, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).view(size, size, channels).permute(2, 0, 1)


def _cut(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
        raise ValueError(f"its box {box} is not x1 < x2 and y1 < y2 inside {image.width} by {image.height} pixels")
    return image.crop(box)


def _key(entries: Sequence[Entry], size: int, channels: int, square: bool) -> str:
    """A hash of all that decides what is read."""
    files = []
    for entry in entries:
        status = entry.path.stat()
        files.append([str(entry.path.absolute()), status.st_size, status.st_mtime_ns, entry.box, entry.size])
    return sha256(json.dumps([VERSION, size, channels, square, files]).encode()).hexdigest()[:32]


def _decode(entries: Sequence[Entry], read: Callable[[Entry], Tensor], ahead: int, title: str, folder: Path) -> None:
    """Writes the images that can be read, one after another, and what is wrong with the others by position."""
    faults = {}
    images = folder / "images"
    with ThreadPoolExecutor() as pool, images.open("wb", buffering=0) as file:  # Pillow decodes without Python's lock
        decoded = _decoded(entries, read, ahead, pool)
        for position, found in enumerate(track(decoded, f"Reading {escape(title)}", len(entries))):
            if isinstance(found, bytes):
                with _writing(folder.parent, images):
                    rest = memoryview(found)
                    while rest:  # a disk that is nearly full takes a part
                        rest = rest[file.write(rest) :]
            else:
                faults[position] = found
        os.fsync(file.fileno())  # on the disk before the folder gets its name
    with _writing(folder.parent, images):
        (folder / "broken.json").write_text(json.dumps(faults))


@contextmanager
def _writing(cache: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Says what to do where the cache takes no more, and leaves it as full as it was before."""
    try:
        yield
    except OSError as error:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
        raise OSError(
            f"The cache {cache} cannot be written ({error}): make room or name another folder with TEMPERED_CACHE."
        ) from error


def _decoded(
    entries: Sequence[Entry], read: Callable[[Entry], Tensor], ahead: int, pool: Executor
) -> Iterator[bytes | str]:
    """Every image's bytes, or what is wrong with it, in order; ``ahead`` at a time."""

    def attempt(entry: Entry) -> bytes | str:
        try:
            return read(entry).contiguous().numpy().tobytes()
        except ValueError as error:
            return str(error)

    for start in range(0, len(entries), ahead):
        yield from pool.map(attempt, entries[start : start + ahead])


def _complain(faults: dict[int, str], count: int, title: str, broken: Broken) -> None:
    """Names the first broken images; an error unless they are skipped and others are left."""
    named = "; ".join(list(faults.values())[:NAMED])
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    says = f"{len(faults)} of the {count} images of {title} cannot be read: {named}{more}."
    if broken == "refuse" or len(faults) == count:
        raise ValueError(f"{says} Convert, replace or remove them, or skip them (broken: skip) where others are left.")
    rank_zero_warn(f"{says} They are skipped.")


def _load(file: Path, shape: tuple[int, ...]) -> Tensor:
    """The images, in memory where they fit."""
    if file.stat().st_size != math.prod(shape):
        raise ValueError(f"{file} is not as it was written: remove the folder {file.parent}, and it is made again.")
    images = torch.from_numpy(np.memmap(file, np.uint8, "c", shape=shape))  # c: copy on write
    return images.clone() if fits(images) else images
