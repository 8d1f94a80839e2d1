"""Carlini & Wagner's attack: the smallest perturbation by gradient descent on its length and the margin together."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from attacks.base import MinimumNorm
from attacks.crafting import BatchNorm, ascend, narrow
from attacks.draws import Draws
from attacks.objectives import margin
from attacks.threat import Threat

# How far from the edges, in half box widths, the search starts: at an edge tanh is flat, and so near to one as the
# authors' 1e-6 Adam needs hundreds of steps before a pixel moves.
SHRINK = 1e-4


def hinge(logits: Tensor, y: Tensor, confidence: float) -> Tensor:
    """``max(z_y - max_{i != y} z_i + confidence, 0)``, f_6 of the paper away from the label: (B,)."""
    return (confidence - margin(logits, y)).clamp_min(0)


class CWL2(MinimumNorm):
    """Carlini & Wagner 2017 (section VI-A), away from the label: ``min_w |x' - x|_2^2 + c max(z_y - z_i + k, 0)``.

    ``x' = tanh(w)``, stretched to the box, and i is the likeliest other class. Adam descends ``steps`` times for each
    of ``search_steps`` values of c: ten times the last one until an image breaks, then bisection. The nearest success
    of all iterates is the result, the image itself where there is none or where it is misclassified from the start.

    As in the authors' code a descent ends early when, over a tenth of its steps, the loss has fallen by less than a
    1e-4th; here every image by its own loss, not the whole batch by its sum, so that no image depends on its batch.
    Distances are measured from the image, not from its rounded copy in the space of w, and an image at the box's edge
    starts a 1e-4th inside it, not a 1e-6th. The authors' last repetition at the largest c, made from 10 search steps
    on, is left out.

    Args:
        threat: radius, norm and box by which it is judged.
        steps: Adam's steps for each c.
        search_steps: how many values of c are tried.
        initial_c: the first.
        lr: Adam's rate, in the space of w.
        confidence: k, by how much another logit must exceed the label's.
        unlimited: see :class:`attacks.base.MinimumNorm`.
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        steps: int = 1000,
        search_steps: int = 9,
        initial_c: float = 1e-3,
        lr: float = 0.01,
        confidence: float = 0.0,
        unlimited: bool = False,
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, unlimited, batchnorm)
        if steps < 1 or search_steps < 1:
            raise ValueError(f"CW-l2 needs at least 1 step and 1 search step, got {steps} and {search_steps}.")
        if not (0 < initial_c < math.inf and 0 < lr < math.inf):
            raise ValueError(f"initial_c and lr must be positive and finite, got {initial_c} and {lr}.")
        if not 0 <= confidence < math.inf:
            raise ValueError(f"confidence must be at least 0 and finite, got {confidence}.")
        self.steps = steps
        self.search_steps = search_steps
        self.initial_c = initial_c
        self.lr = lr
        self.confidence = confidence

    @property
    def name(self) -> str:
        parts = [
            "CW-l2",
            "" if self.steps == 1000 else f"{self.steps} steps",
            "" if self.search_steps == 9 else f"{self.search_steps} searches",
            "" if self.initial_c == 1e-3 else f"c {self.initial_c:g}",
            "" if self.lr == 0.01 else f"lr {self.lr:g}",
            "" if self.confidence == 0 else f"confidence {self.confidence:g}",
            "" if self.limited else "unlimited",
        ]
        return " ".join(filter(None, parts))

    @property
    def budget(self) -> int:
        return self.search_steps * self.steps + 1

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        with torch.no_grad():
            stands = margin(model(x), y) <= self.confidence
        result, shortest = x.clone(), x.new_full((len(x),), torch.inf)
        c, least, most = torch.full_like(shortest, self.initial_c), torch.zeros_like(shortest), shortest.clone()
        rows = stands.nonzero().squeeze(1)
        for _ in range(self.search_steps):
            if not len(rows):
                break
            found, square = self._descend(narrow(model, rows), x[rows], y[rows], c[rows])
            closer = square < shortest[rows]
            result[rows[closer]], shortest[rows[closer]] = found[closer], square[closer]
            breaks = square.isfinite()
            most[rows[breaks]], least[rows[~breaks]] = c[rows[breaks]], c[rows[~breaks]]
            c = torch.where(most.isinf(), 10 * c, (least + most) / 2)
            rows = rows[~(shortest[rows].isfinite() & self.settled(result[rows], x[rows]))]
        return result

    def _descend(self, model: nn.Module, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One run of Adam at one c per image, (B,): the nearest success, and its squared distance or infinity."""
        low, high = self.bounds
        centre, half, wide = (low + high) / 2, (high - low) / 2, (-1, *[1] * (x.dim() - 1))
        w = ((1 - SHRINK) * (x - centre) / half).atanh()
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        found, shortest = x.clone(), x.new_full((len(x),), torch.inf)
        rows, before = torch.arange(len(x), device=x.device), shortest
        for step in range(self.steps):
            tanh = w.tanh()
            x_adv = (centre + half * tanh).clamp(low, high)
            logits, excess, gradient = ascend(model, x_adv, partial(hinge, y=y, confidence=self.confidence))
            delta = x_adv - x
            square = delta.square().flatten(1).sum(1)
            breaks = margin(logits, y) > self.confidence
            closer = breaks & (square < shortest[rows])
            found[rows[closer]], shortest[rows[closer]] = x_adv[closer], square[closer]
            leaves = breaks & self.settled(x_adv, x)
            if step % math.ceil(self.steps / 10) == 0:
                loss = square + c * excess
                leaves |= loss > 0.9999 * before
                before = loss
            gradient = (c.view(wide) * gradient + 2 * delta) * half * (1 - tanh.square())
            if leaves.any():
                stays = (~leaves).nonzero().squeeze(1)
                model, rows, x, y, c = narrow(model, stays), rows[stays], x[stays], y[stays], c[stays]
                w, first, second, before, gradient = (part[stays] for part in (w, first, second, before, gradient))
                if not len(rows):
                    break
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient.square()
            rate = self.lr / (1 - 0.9 ** (step + 1))
            w = w - rate * first / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        return found, shortest
