"""What a teacher says of clean training images, kept on disk for every student, temperature and seed.

Shifting by up to 4 pixels and mirroring shows an image in 162 views (:mod:`datamodules.augment`), so a teacher that
never changes has so many answers to give, and need not give any of them twice.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from rich.progress import track
from torch import Tensor

from datamodules import Batch, Images
from datamodules.augment import shown
from datamodules.store import cache_folder
from lightning_modules.noise import Noise
from lightning_modules.teachers import FrozenTeacher

VERSION = 1  # of what a file holds
ON_DEVICE = 4 << 30  # bytes; of a larger file an accelerator gets each batch's answers from the CPU
PROBED = 16  # at most so many answers that the teacher is asked for again when a file is opened
APART = 0.05  # relative distance: many times what batch, device or bf16 change, a fraction of what another teacher says


class AnswersCache:
    """fp16 logits of every view of every training image, in a memory-mapped file, each with a flag once it is there.

    An answer is written before its flag, and all who fill a file write the same, so processes and runs may share it,
    and one that is killed leaves no harm. On an accelerator a copy is held, renewed by :meth:`refresh`.

    Args:
        file: as :func:`open_cache` makes it.
        teacher: whose answers these are.
        data: the dataset.

    Attributes:
        complete: whether nothing that training may ask for is missing; then nothing is ever looked for, and a step
            does not wait for its device.
    """

    def __init__(self, file: Path, teacher: FrozenTeacher, data: Images) -> None:
        assert data.views is not None
        self.teacher = teacher
        self.data = data
        self.views = data.views
        self.trained = data.split_index("train")
        rows, classes = len(data.training_images) * self.views, data.facts.classes
        content = np.memmap(file, np.uint8, "r+", shape=(rows * (2 * classes + 1),))
        logits, filled = np.split(content, [rows * 2 * classes])
        self.logits = torch.from_numpy(logits.view(np.float16)).view(rows, classes)
        self.filled = torch.from_numpy(filled.view(np.bool_))
        self.complete = False
        self._held, self._known = self.logits, self.filled

    def __call__(self, batch: Batch) -> Tensor:
        """z_T of a batch's clean images, rounded to fp16, as float32 (B, classes); what is missing is asked and kept.

        Raises:
            FloatingPointError: for an answer that fp16 cannot hold.
        """
        assert batch.view is not None
        row = (batch.index * self.views + batch.view).to(self._held.device)
        answers = self._held.index_select(0, row)
        if not self.complete:
            missing = (~self._known.index_select(0, row)).nonzero().squeeze(1)
            if len(missing):
                x = batch.clean.index_select(0, missing.to(batch.x.device))
                answers[missing] = self._keep(row[missing], self.teacher(x)).to(answers.device)
        return answers.to(batch.x.device).float()

    def refresh(self, device: torch.device) -> None:
        """Counts what is there, by whoever it was put, and brings an accelerator's copy up to date; once an epoch."""
        if not self.complete:
            self.complete = self.share() == 1
            if device.type != "cpu" and self.logits.nbytes <= ON_DEVICE:
                self._held, self._known = self.logits.to(device), self.filled.to(device)

    def share(self) -> float:
        """The share, in [0, 1], that is there of what training may ask for."""
        asked = self.filled.view(-1, self.views)[self.trained]
        return int(asked.count_nonzero()) / asked.numel()

    def fill(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        """Asks for all that is missing, or for one process's part of it."""
        rows = (self.trained[:, None] * self.views + torch.arange(self.views)).flatten()[rank::world_size]
        rows = rows[~self.filled[rows]]
        if len(rows):
            for part in track(rows.split(self.data.eval_batch_size), "Asking the teacher", disable=rank > 0):
                self._keep(part, self._ask(part, device))

    def agrees(self, device: torch.device) -> bool:
        """Whether the teacher says again what it is said to have said, of a few images all over the file."""
        rows = self.filled.nonzero().squeeze(1)
        rows = rows[:: -(-len(rows) // PROBED)]
        stored, said = self.logits[rows].float(), self._ask(rows, device).float().cpu()
        return float((stored - said).norm()) <= APART * float(said.norm())

    def _ask(self, rows: Tensor, device: torch.device) -> Tensor:
        images = self.data.batch("train", (rows // self.views).to(device)).x
        return self.teacher(shown(images, (rows % self.views).to(device)))

    def _keep(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Writes answers, then their flags; returns them as they are written, on the CPU."""
        logits = logits.half().cpu()
        if not logits.isfinite().all():
            raise FloatingPointError(
                f"The teacher from {self.teacher.origin} answers with logits that are nan or beyond "
                f"{torch.finfo(torch.half).max:,.0f}, which fp16 cannot hold: train without a cache (cache: false)."
            )
        self.logits[rows.cpu()] = logits
        self.filled[rows.cpu()] = True
        return logits


def obstacle(data: object, noise: Sequence[Noise]) -> str | None:
    """Why a teacher's answers cannot be kept; None where they can."""
    if not isinstance(data, Images):
        return "the trainer was given no datamodules.Images, which number what they show"
    if data.views is None:
        return f"{type(data).__name__} has batches of its own making, in which an image has views that nobody counts"
    for source in noise:
        if type(source).on_teacher is not Noise.on_teacher:
            return f"{type(source).__name__} changes the teacher, which may not say the same twice"
    return None


def open_cache(teacher: FrozenTeacher, data: Images, precision: str, device: torch.device) -> AnswersCache:
    """The cache of a teacher's answers on a dataset's training images, made where there is none.

    It lies in ``$TEMPERED_CACHE``, or ``~/.cache/tempered`` where that is unset, and may be removed at any time. Its
    name is a hash of teacher, images, views and precision, so another of these has another file. One whose size is
    wrong, or that holds other answers than the teacher's, is made anew with a warning.

    Args:
        teacher: the teacher.
        data: the dataset, set up.
        precision: of the teacher's forward, as the Trainer calls it.
        device: where the teacher is asked.

    Raises:
        OSError: if the folder cannot take the file.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"answers-{_key(teacher, data, precision)}"
    images, views, classes = len(data.training_images), data.views or 1, data.facts.classes
    size = images * views * (2 * classes + 1)
    with FileLock(folder / f".{file.name}.lock"):
        if file.exists() and file.stat().st_size != size:
            rank_zero_warn(f"{file} holds {file.stat().st_size:,} bytes, not {size:,}: it is made anew.")
            _make(file, size)
        elif not file.exists():
            _make(file, size)
        cache = AnswersCache(file, teacher, data)
        if cache.filled.any() and not cache.agrees(device):
            rank_zero_warn(f"{file} holds other answers than those of the teacher from {teacher.origin}: made anew.")
            _make(file, size)
            cache = AnswersCache(file, teacher, data)
    rank_zero_info(
        f"Teacher's answers, {cache.share():.1%} of those of training there: {images:,} images, views of each {views}, "
        f"classes {classes}, fp16, {size / 1e6:,.2f} MB in {file}"
    )
    return cache


def _key(teacher: FrozenTeacher, data: Images, precision: str) -> str:
    """A hash of all that decides what the teacher says."""
    module, images = teacher.module, data.training_images
    # A plain state dict says neither its architecture nor its normalisation.
    constants = {key: value.tolist() for key, value in module.named_buffers() if key not in module.state_dict()}
    pixels = sha256(images.contiguous().numpy().data).hexdigest()
    about = [VERSION, teacher.sha256, repr(module), constants, pixels, str(images.dtype), list(images.shape)]
    return sha256(json.dumps([*about, data.views, data.facts.classes, precision]).encode()).hexdigest()[:32]


def _make(file: Path, size: int) -> None:
    """An empty file; whoever has mapped the one before it goes on with that."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        with unfinished.open("wb") as content:
            for start in range(0, size, 1 << 20):  # written out: a map into a full disk would end the process
                content.write(bytes(min(1 << 20, size - start)))
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(
            f"{file.parent} cannot take the {size / 1e6:,.2f} MB of a teacher's answers ({error}): make room, name "
            "another folder with TEMPERED_CACHE, or train without a cache (cache: false)."
        ) from error
