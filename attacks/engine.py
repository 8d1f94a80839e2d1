"""What runs one attack over a test set: batches of the images that stand, a confirmed verdict on each, its cost."""

import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import crafting
from attacks.draws import Draws, OfficialDraws
from attacks.objectives import margin
from attacks.progress import Bar
from attacks.results import Outcome
from attacks.state import State
from attacks.subject import Ledger, Subject
from attacks.threat import Threat

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Engine:
    """Runs attacks on a model, a part of an attack at a time.

    Attributes:
        model: judges; it is left exactly as it was.
        searcher: what the attacks see: the model or a faster copy.
        batches: (images, labels, indices), on the model's device.
        state: where what is done is kept.
        bar: shows progress.
        seed: what draws follow from, with an image's index.
        official: draw by one generator for each batch.
        bf16: search in bfloat16.
        deterministic: whether the model gives the same at the same point.
        votes: passes whose mean probabilities judge an image.
        stop: images leave an attack as soon as they are broken.
        kept: how many of the first images' examples to keep.
    """

    model: nn.Module
    searcher: nn.Module
    batches: Sequence[Batch]
    state: State
    bar: Bar
    seed: int
    official: bool
    bf16: bool
    deterministic: bool
    votes: int
    stop: bool
    kept: int

    def run(self, attack: Attack, before: Outcome, stage: str, name: str) -> Outcome:
        """Attacks the images that an earlier outcome left standing.

        Args:
            attack: the attack, with its threat model.
            before: what became of the images so far; ``images``, where there are any, are replaced one by one.
            stage: what the state calls this part.
            name: what the progress bar calls it.
        """
        stands = before.rank == 0
        self.bar.start(name, stands, attack.budget)
        outcome = before.reopened(str(attack.threat) if attack.limited else "")
        for number, (x, y, index, where) in enumerate(standing(self.batches, stands)):
            done = self.state.read(stage, number, where)
            if done is None:
                began = time.perf_counter()
                done = self._attack(attack.evaluating(self.deterministic) if self.stop else attack, x, y, index)
                done["x_adv"] = done["x_adv"][where < self.kept]
                done["seconds"] = np.array(time.perf_counter() - began)
                self.state.write(stage, number, where, done)
            outcome.fill(where, done)
            self.bar.finish(outcome.rank[where] == 0)
        return outcome

    def _attack(self, attack: Attack, x: Tensor, y: Tensor, index: Tensor) -> dict[str, np.ndarray]:
        """What becomes of a batch; what only the copy took for a success is attacked again on the model itself."""
        draws = OfficialDraws(index, self.seed) if self.official else Draws(index, self.seed)
        ledger = Ledger(len(x), x.device, self.bar.watch(len(x)))
        # A copy with batch-norm folded in knows no other mode than eval.
        searcher = self.searcher if attack.batchnorm == "eval" else self.model
        with self._search():
            x_adv = attack(Subject(searcher, ledger), x, y, draws)
        prediction, rank = self._verdict(attack, x, x_adv, y)
        doubtful = ((rank == 0) & attack.allows(x_adv, x)).nonzero().squeeze(1)
        if len(doubtful) and (self.bf16 or searcher is not self.model):
            with self._search(), crafting(searcher), torch.no_grad():
                again = doubtful[searcher(x_adv[doubtful]).argmax(1) != y[doubtful]]
            if len(again):
                x_adv[again] = attack(Subject(self.model, ledger, again), x[again], y[again], draws[again])
                prediction[again], rank[again] = self._verdict(attack, x[again], x_adv[again], y[again])
        delta = (x_adv - x).flatten(1)
        found = {
            "prediction": prediction,
            "rank": rank,
            "linf": delta.abs().amax(1),
            "l2": delta.norm(dim=1),
            "forwards": ledger.forwards,
            "backwards": ledger.backwards,
            "x_adv": x_adv,
            **{f"note/{name}": values for name, values in ledger.notes.items()},
        }
        return {name: values.cpu().numpy() for name, values in found.items()}

    def _search(self) -> AbstractContextManager[object]:
        """The precision that the search is made in."""
        return torch.autocast(self.batches[0][0].device.type, torch.bfloat16, enabled=self.bf16)

    def _verdict(self, attack: Attack, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted class and rank of the true one; an example that the threat model does not allow is no success."""
        check(x_adv, attack.threat, f"Images from {attack.name}")
        prediction, rank = judge(self.model, x_adv, y, self.votes)
        allowed = attack.allows(x_adv, x)
        return torch.where(allowed, prediction, y), torch.where(allowed, rank, 0)


def standing(batches: Sequence[Batch], stands: np.ndarray) -> Iterator[tuple[Tensor, Tensor, Tensor, np.ndarray]]:
    """The images that stand, in batches as large as the given ones, with their positions in the whole."""
    size = max(len(y) for _, y, _ in batches)
    held: list[tuple[Tensor, ...]] = []
    offset = 0
    for x, y, index in batches:
        where = torch.arange(offset, offset + len(y))
        offset += len(y)
        left = torch.from_numpy(stands[where.numpy()])
        if left.any():
            chosen = left.to(x.device)
            held.append((x[chosen], y[chosen].long(), index[chosen], where[left]))
        while sum(len(part[1]) for part in held) >= size or (offset == len(stands) and held):
            images, labels, indices, positions = (torch.cat(part) for part in zip(*held, strict=True))
            yield images[:size], labels[:size], indices[:size], positions[:size].numpy()
            rest = tuple(part[size:] for part in (images, labels, indices, positions))
            held = [rest] if len(labels) > size else []


def deterministic(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a model gives the same logits and the same gradient twice, but for rounding, and draws nothing."""
    passes = []
    before = _generators(x)
    with crafting(model):
        for _ in range(2):
            point = x.clone().requires_grad_()
            logits = model(point)
            slope = torch.autograd.grad(margin(logits, y).sum(), point) if logits.requires_grad else ()
            passes.append((logits.detach(), *slope))
    # Two passes may agree by chance where a draw decides between two ways to go.
    return _generators(x) == before and all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().amax()))
        for one, other in zip(*passes, strict=True)
    )


def _generators(x: Tensor) -> list[object]:
    """The states of all generators that a model may draw from."""
    kept = np.random.get_state(legacy=False)  # noqa: NPY002 - a model may use it, whatever we do
    states: list[object] = [random.getstate(), str(kept), torch.get_rng_state().tolist()]
    return [*states, torch.cuda.get_rng_state(x.device).tolist()] if x.is_cuda else states


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, convolutions on a GPU compute in float32, not in TF32 as is cuDNN's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def check(x: Tensor, threat: Threat, whose: str) -> None:
    """Raises ValueError for images that are no floats in the box."""
    low, high = threat.bounds
    slack = 1e-5 * (high - low)
    # Written so that images which are not numbers do not pass.
    if x.is_floating_point() and x.element_size() < 4:
        raise ValueError(
            f"{whose} are {x.dtype}, which rounds away what an attack changes: cast them to float32 "
            "(precision: bf16 makes the search faster all the same)."
        )
    if not x.is_floating_point() or not (x.amin() >= low - slack and x.amax() <= high + slack):
        raise ValueError(
            f"{whose} are {x.dtype} in [{x.amin():g}, {x.amax():g}], expected floats in [{low:g}, {high:g}]: "
            "scale them (x / 255 for bytes) or give the threat model their box."
        )


def judge(model: nn.Module, x: Tensor, y: Tensor, votes: int = 1) -> tuple[Tensor, Tensor]:
    """Predicted classes (B,) and how many classes rank before the true one (B,), in float32.

    Args:
        model: maps images to logits.
        x: images.
        y: true classes.
        votes: passes whose mean probabilities decide.

    Raises:
        ValueError: for logits that are not finite or not (images, classes), or labels that are no classes.
    """
    with crafting(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_precision():
        passes = [model(x) for _ in range(votes)]
    if not isinstance(passes[0], Tensor):
        raise ValueError(f"The model gives a {type(passes[0]).__name__}, expected logits: wrap it in one that does.")
    if passes[0].dim() != 2 or len(passes[0]) != len(x):
        raise ValueError(f"The model gives {tuple(passes[0].shape)} for {len(x)} images, expected (images, classes).")
    logits = passes[0] if votes == 1 else torch.stack([z.softmax(1) for z in passes]).mean(0)
    if not logits.isfinite().all():
        raise ValueError("The model returned logits that are not finite, so its predictions mean nothing.")
    if y.is_floating_point() or y.amin() < 0 or y.amax() >= logits.shape[1]:
        raise ValueError(
            f"Labels are {y.dtype} from {y.amin()} to {y.amax()}, but the model has {logits.shape[1]} classes."
        )
    if votes == 1 and logits.amin() >= 0 and (logits.sum(1) - 1).abs().amax() < 1e-4:
        warnings.warn(
            "The model returns what looks like probabilities; attacks need logits: remove its softmax.", stacklevel=1
        )
    prediction = logits.argmax(1)
    before = (logits > logits.gather(1, y[:, None])).sum(1)
    # Of classes that tie, the first is predicted.
    return prediction, torch.where(prediction == y, 0, before.clamp_min(1))


def unmoved(model: nn.Module, batches: Sequence[Batch], threat: Threat, votes: int) -> Outcome:
    """The outcome of no attack: predictions on clean images."""
    began = time.perf_counter()
    judged = []
    for x, y, _ in batches:
        if y.shape != (len(x),):
            raise ValueError(f"There are labels {tuple(y.shape)} for {len(x)} images, expected one for each.")
        if not len(x):
            continue
        check(x, threat, "Images")
        judged.append(judge(model, x, y if y.is_floating_point() else y.long(), votes))
    prediction, rank = (torch.cat(part).cpu().numpy() for part in zip(*judged, strict=True))
    n = len(rank)
    still, passes = np.zeros((3, n)), np.full(n, float(votes))
    seconds = time.perf_counter() - began
    return Outcome(prediction, rank, still[0], still[1], passes, still[2], np.ones(n, bool), seconds)
