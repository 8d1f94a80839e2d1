"""DeepFool: the nearest boundary of a model taken for linear, step by step."""

from typing import get_args

import torch
from torch import Tensor, nn

from attacks.base import MinimumNorm
from attacks.crafting import BatchNorm, narrow
from attacks.draws import Draws
from attacks.objectives import likely_others
from attacks.threat import Norm, Threat

# Added to every step, in box widths: an image that rounding leaves exactly on the boundary must still cross it.
NUDGE = 1e-5
# How much nearer than it looks a class may be: slopes change from step to step.
SLACK = 2.0


class DeepFool(MinimumNorm):
    """DeepFool (Moosavi-Dezfooli et al. 2016, algorithm 2, and its section 3.3 for other norms).

    From the predicted class y, with ``f_k = z_k - z_y`` and ``w_k = grad f_k`` at the iterate, the boundary of class k
    lies about ``|f_k| / |w_k|_*`` away (``*``: the dual norm, l2 for l2 and l1 for linf). Each step goes that far to
    the nearest one, ``r <- r + |f_k| / |w_k|_* steepest(w_k)``; the iterate is ``x + (1 + overshoot) r``, clamped to
    the box. It ends where the class changes. All of it is a ratio of logits, so their scale does not matter.

    After the first step a class is looked at only where its boundary may be the nearest, by its gap and last slope.
    Unlike the authors' code it takes a step's length without an absolute constant for numerical stability but for a
    1e-5th of the box's width, and clamps. An image that is misclassified from the start is returned as it is.

    Args:
        threat: radius, norm and box by which it is judged.
        steps: the most steps.
        overshoot: how much further than the boundary to go, as a share of the perturbation.
        norm: the norm in which the perturbation is small, ``l2`` or ``linf``, whatever the threat's.
        candidates: only so many classes are considered, the predicted one and those next in likelihood at the image.
        unlimited: see :class:`attacks.base.MinimumNorm`.
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        steps: int = 50,
        overshoot: float = 0.02,
        norm: Norm = "l2",
        candidates: int = 10,
        unlimited: bool = False,
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, unlimited, batchnorm)
        if steps < 1 or not 0 <= overshoot < float("inf"):
            raise ValueError(
                f"DeepFool needs at least 1 step and an overshoot of at least 0, got {steps}, {overshoot}."
            )
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}.")
        if candidates < 2:
            raise ValueError(f"candidates counts the predicted class, so it must be at least 2, got {candidates}.")
        self.steps = steps
        self.overshoot = overshoot
        self.norm = norm
        self.candidates = candidates

    @property
    def name(self) -> str:
        parts = [
            "DeepFool",
            "" if self.norm == "l2" else self.norm,
            "" if self.steps == 50 else f"{self.steps} steps",
            "" if self.overshoot == 0.02 else f"overshoot {self.overshoot:g}",
            "" if self.candidates == 10 else f"{self.candidates} classes",
            "" if self.limited else "unlimited",
        ]
        return " ".join(filter(None, parts))

    @property
    def budget(self) -> int:
        return 2 * self.steps

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        low, high = self.bounds
        wide = (-1, *[1] * (x.dim() - 1))
        result, rows = x.clone(), torch.arange(len(x), device=x.device)
        x_adv, moved, distance = x, torch.zeros_like(x), x.new_zeros(len(x))
        others: Tensor | None = None
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            logits = model(x_adv).to(x.dtype)
            # No class has a gradient at an infinite distance: such an image would stay where it is.
            leaves = (logits.argmax(1) != y) | distance.isinf()
            if others is None:
                others = likely_others(logits.detach(), y, min(self.candidates, logits.shape[1]) - 1)
                slopes = torch.zeros_like(others, dtype=x.dtype)
            if leaves.any():
                result[rows[leaves]] = x_adv.detach()[leaves]
                stays = (~leaves).nonzero().squeeze(1)
                model, rows, x, y = narrow(model, stays), rows[stays], x[stays], y[stays]
                moved, others, slopes = moved[stays], others[stays], slopes[stays]
                if not len(rows):
                    return result
                # One more pass for those that stay costs less than a backward pass per class for those that left.
                x_adv = x_adv.detach()[stays].requires_grad_()
                logits = model(x_adv).to(x.dtype)
            gaps = logits.gather(1, others) - logits.gather(1, y[:, None])
            distance, direction = self._nearest(gaps, slopes, x_adv)
            step = torch.where(distance.isinf(), 0, distance + NUDGE * (high - low))
            moved = moved + step.view(wide) * direction
            x_adv = (x + (1 + self.overshoot) * moved).clamp(low, high)
        result[rows] = x_adv
        return result

    def _nearest(self, gaps: Tensor, slopes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far and in which direction the nearest boundary lies, were the model linear.

        Every class is looked at once. From then on a backward pass is spent on it only where it may be the nearest:
        where, at the slope that it had when last looked at, it would lie within ``SLACK`` times the distance of the
        nearest one found.

        Args:
            gaps: every candidate's logit less the predicted class's, (B, k), a function of ``x``.
            slopes: the dual norms of the gaps' gradients when last looked at, 0 at first, (B, k); updated.
            x: the iterates.

        Returns:
            Distances (B,), infinite where no candidate has a gradient, and directions of unit norm, shaped like ``x``.
        """
        distance, direction = x.new_full((len(x),), torch.inf), torch.zeros_like(x)
        depth = gaps.detach().abs()
        looked = torch.zeros_like(slopes, dtype=torch.bool)
        for _ in range(gaps.shape[1]):
            guess = torch.where(slopes > 0, depth / slopes, 0).masked_fill(looked, torch.inf)
            guess, chosen = guess.min(1, keepdim=True)
            wanted = guess.squeeze(1) < SLACK * distance
            if not wanted.any():
                break
            (gradient,) = torch.autograd.grad(gaps.gather(1, chosen).sum(), x, retain_graph=True)
            steepest = Threat(self.norm).steepest(gradient)
            slope = (gradient * steepest).flatten(1).sum(1)  # the dual norm of the gradient
            # An image that wants no more is not told what others have asked for: its path is its own.
            slopes.scatter_(1, chosen, torch.where(wanted, slope, slopes.gather(1, chosen).squeeze(1))[:, None])
            looked.scatter_(1, chosen, True)
            reach = depth.gather(1, chosen).squeeze(1) / slope  # 0 / 0 is NaN, and so never nearer
            nearer = wanted & (reach < distance)
            distance = torch.where(nearer, reach, distance)
            direction = torch.where(nearer.view(-1, *[1] * (x.dim() - 1)), steepest, direction)
        return distance, direction
