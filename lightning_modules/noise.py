"""Noise in training, from sources that any regime can combine: on labels, on images, on what the teacher says.

Source: *Noisy Collaboration in Knowledge Distillation* (004). Every draw follows from the run's seed, the image and the
step or the epoch, so neither batches nor processes nor a resumed fit change it; only a fickle teacher's dropout is
torch's own, seeded by epoch and process. Validation and tests see no noise.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks import Draws
from lightning_modules.losses import check_temperature, check_weight
from lightning_modules.teachers import FrozenTeacher

Span = Literal["run", "epoch", "step"]


@dataclass(frozen=True)
class Moment:
    """When a source draws, and for which images.

    Attributes:
        index: the images' indices, int64 (B,).
        words: integers that tell this source and run apart from others.
        epoch: number of the epoch.
        step: number of the optimiser step.
    """

    index: Tensor
    words: tuple[int, ...]
    epoch: int
    step: int

    def draws(self, span: Span) -> Draws:
        """The images' draws, the same for the whole of the run, of the epoch, or of the step."""
        time = {"run": (0, 0), "epoch": (1, self.epoch), "step": (2, self.step)}[span]
        return Draws(self.index, (*self.words, *time))


class Noise:
    """A source of noise; a subclass overrides what it disturbs, the rest stays as it is.

    Attributes:
        needs_teacher: whether it disturbs a teacher, so that a regime without one would not notice it.
        needs_labels: whether it disturbs labels, so that a regime that never looks at them would not notice it.
    """

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    def on_labels(self, y: Tensor, classes: int, moment: Moment) -> Tensor:
        """Labels (B,) in [0, classes), as training is told them."""
        return y

    def on_images(self, x: Tensor, moment: Moment) -> Tensor:
        """Images (B, C, H, W), as the student sees them; on clean images its teacher sees them without noise."""
        return x

    def on_teacher(self, teacher: FrozenTeacher) -> None:
        """Prepares the teacher, once, before a fit."""

    def on_answer(self, logits: Tensor, temperature: float, moment: Moment) -> Tensor:
        """The teacher's logits (B, classes), as the student hears them, who softens them at a temperature."""
        return logits


class LabelCorruption(Noise):
    """With probability p a label becomes a uniformly drawn other class (004, §4.4).

    In a teacher's config it corrupts the teacher (the paper's T), in a student's the student (S), in both both (TS):
    with equal seeds the same images get the same labels in the same epoch. A class that is left out of the data may be
    drawn too.

    Args:
        p: probability, in [0, 1].
        fixed: keep the first draw for the whole run, as a wrongly labelled dataset would; otherwise the labels are
            corrupted anew in every epoch.
    """

    needs_labels = True

    def __init__(self, p: float, fixed: bool = False) -> None:
        check_weight("p", p)
        self.p = p
        self.fixed = fixed

    def on_labels(self, y: Tensor, classes: int, moment: Moment) -> Tensor:
        draws = moment.draws("run" if self.fixed else "epoch")
        hit = draws.uniform((1,)).view(-1) < self.p
        other = draws.integers(classes - 1)
        return torch.where(hit, other + (other >= y), y)


class InputNoise(Noise):
    """``x + d`` with ``d ~ N(0, s^2)`` for every value of the student's image. It may leave the box, but
    not in a regime with an adversary, who stays inside.

    With :class:`~lightning_modules.Distillation` this is *soft randomization* (004, §4.3, eq. 2): the teacher sees x.
    With :class:`~lightning_modules.Teacher` it is the student trained alone that the paper compares it with.

    Args:
        sigma: s, in the units of the box.
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = check_level(sigma)

    def on_images(self, x: Tensor, moment: Moment) -> Tensor:
        return x + self.sigma * moment.draws("step").normal(x.shape[1:]).to(x.dtype)


class SignalDependentNoise(Noise):
    """``z_T <- z_T (1 + d)`` with ``d ~ N(0, s^2)`` for every logit of the teacher (004, §4.1).

    Args:
        sigma: s, relative to the logit.
    """

    needs_teacher = True

    def __init__(self, sigma: float) -> None:
        self.sigma = check_level(sigma)

    def on_answer(self, logits: Tensor, temperature: float, moment: Moment) -> Tensor:
        return logits * (1 + self.sigma * moment.draws("step").normal(logits.shape[1:]))


class FickleTeacher(Noise):
    """The teacher's dropout is active at every forward (004, §4.2): one sample, no averaging.

    The teacher was trained with the same dropout; everything else of it, batch-norm too, stays in eval mode.
    """

    needs_teacher = True

    def on_teacher(self, teacher: FrozenTeacher) -> None:
        teacher.keep_dropout_active()


class Swap(Noise):
    """With probability p, softened probabilities of the teacher that hardly differ are swapped (004, §A.4).

    Args:
        p: probability for every image, in [0, 1].
        which: ``top2`` swaps the two largest; ``all`` walks from the largest to the smallest and swaps each pair of
            neighbours in turn, so that a value can be carried on.
        threshold: probabilities are swapped where they differ by less. The paper names none; 0.1 is ours.
    """

    needs_teacher = True

    def __init__(self, p: float, which: Literal["top2", "all"] = "top2", threshold: float = 0.1) -> None:
        check_weight("p", p)
        check_temperature("threshold", threshold)
        if which not in ("top2", "all"):
            raise ValueError(f"which must be top2 or all, got {which!r}.")
        self.p = p
        self.which = which
        self.threshold = threshold

    def on_answer(self, logits: Tensor, temperature: float, moment: Moment) -> Tensor:
        chosen = moment.draws("step").uniform((1,)).view(-1) < self.p
        sorted_logits, order = logits.sort(1, descending=True)
        softened = (logits.float() / temperature).softmax(1).gather(1, order)
        rank = torch.arange(logits.shape[1], device=logits.device).expand_as(order).clone()
        for left in range(1 if self.which == "top2" else logits.shape[1] - 1):
            # What stands here now may have been carried from further up.
            here, there = rank[:, left].clone(), rank[:, left + 1].clone()
            gap = softened.gather(1, here[:, None]) - softened.gather(1, there[:, None])
            swap = chosen & (gap.squeeze(1) < self.threshold)
            rank[:, left], rank[:, left + 1] = torch.where(swap, there, here), torch.where(swap, here, there)
        # The class of the i-th place now has the logit that has come to stand there.
        return torch.zeros_like(logits).scatter(1, order, sorted_logits.gather(1, rank))


def check_level(sigma: float) -> float:
    """Raises ValueError for a noise level below 0."""
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"A noise level must be at least 0 and finite, got sigma={sigma}.")
    return sigma
