"""The attacked model as a suite hands it to an attack: it counts each image's cost and keeps what is said."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.crafting import RowWise


class Ledger:
    """What an attack has spent on every image of a batch, and what it has noted.

    Attributes:
        forwards: forward passes of every image, (n,).
        backwards: backward passes of every image, (n,).
        notes: quantities that the attack measures by the way, by name: (n,) or (n, k) each, NaN where none was noted.
    """

    def __init__(self, count: int, device: torch.device, watch: Callable[["Ledger"], None] | None = None) -> None:
        self.forwards = torch.zeros(count, device=device)
        self.backwards = torch.zeros(count, device=device)
        self.notes: dict[str, Tensor] = {}
        self.watch = watch  # called after every forward pass


class Subject(RowWise):
    """A model whose passes are counted per image.

    An attack that gives it another number of images than it was narrowed to (several samples of each, say) has its
    passes spread evenly over those images.
    """

    def __init__(self, model: nn.Module, ledger: Ledger, rows: Tensor | None = None) -> None:
        super().__init__()
        self.model = model
        self.ledger = ledger
        self.rows = torch.arange(len(ledger.forwards), device=ledger.forwards.device) if rows is None else rows

    def forward(self, x: Tensor) -> Tensor:
        share = len(x) / max(len(self.rows), 1)
        self._count(self.ledger.forwards, share)
        if self.ledger.watch is not None:
            self.ledger.watch(self.ledger)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count(self.ledger.backwards, share))
        return logits

    def _count(self, passes: Tensor, share: float) -> None:
        # An image may be there more than once: led to several classes at a time, say.
        passes.index_add_(0, self.rows, torch.full_like(self.rows, share, dtype=passes.dtype))

    def narrowed(self, kept: Tensor) -> nn.Module:
        return Subject(self.model, self.ledger, self.rows[kept])


def note(model: nn.Module, name: str, values: Tensor) -> None:
    """Writes a quantity of every image that the model is narrowed to into the suite's ledger, if there is one.

    Args:
        model: the model as the attack was given it, narrowed to the images in question.
        name: what the quantity is called; it becomes a column of the suite's file.
        values: numbers (b,) or (b, k).
    """
    while not isinstance(model, Subject):
        inner = getattr(model, "model", None)
        if not isinstance(model, RowWise) or inner is None:
            return
        model = inner
    ledger = model.ledger
    if name not in ledger.notes:
        shape = (len(ledger.forwards), *values.shape[1:])
        ledger.notes[name] = torch.full(shape, torch.nan, device=values.device)
    ledger.notes[name][model.rows] = values.float()
