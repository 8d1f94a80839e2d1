"""The Jacobian-based saliency map attack: few features, changed by much, two at a time."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from attacks.base import MinimumNorm
from attacks.crafting import BatchNorm, narrow
from attacks.draws import Draws
from attacks.subject import note
from attacks.threat import Threat

Jacobian = Literal["probabilities", "logits"]
POOL = 2**20  # features of all images that are led to a class at a time
PAIRS = 2**24  # pairs of features that are compared at a time


class Crafted(NamedTuple):
    """What JSMA needed, over a test set.

    Attributes:
        success: share of the images of class s (row) that were led to class t (column), (C, C); NaN on the diagonal
            and where there is no image of s.
        rate: share of all pairs of image and other class that succeeded.
        robustness: mean over those pairs of the share of features changed.
    """

    success: Tensor
    rate: float
    robustness: float


def crafted(shares: Tensor, y: Tensor, gamma: float = 0.145) -> Crafted:
    """Papernot's success matrix and robustness metric (IEEE S&P 2016, sections V-B and V-D).

    A pair of image and class that the attack did not achieve counts in ``robustness`` as ``gamma``, the most that the
    attack may change: a lower bound of what it takes. So must the paper have counted, whose metric of 14.08 % at a
    success rate of 0.45 % is all but its own limit.

    Args:
        shares: what :class:`JSMA` without ``target`` notes as ``features``: of every image (row) and class (column),
            the share of features changed on success, NaN otherwise, (n, C).
        y: the images' labels, (n,).
        gamma: the attack's.
    """
    count = shares.shape[1]
    other = torch.arange(count, device=y.device) != y[:, None]
    reached = ~shares.isnan() & other
    source = torch.eye(count, dtype=torch.float64, device=y.device)[y]
    success = source.T @ reached.double() / source.sum(0)[:, None]
    changed = torch.where(reached, shares.double(), gamma)[other]
    return Crafted(success.fill_diagonal_(torch.nan), float(reached[other].double().mean()), float(changed.mean()))


def best_pair(u: Tensor, v: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
    """The pair p != q of features of largest ``(u_p + u_q)(v_p + v_q)`` among those where both sums are positive.

    It is found without all D^2 pairs, yet exactly. If two others are at least as large as i in both u and v, one of
    them is not i's partner and can take i's place without loss: i need not be looked at. Once sorted by u, those two
    come before i, so that i is left out where v_i is no more than the second largest v before it. Of D independent
    features about 2 ln D remain.

    Args:
        u, v: of every image and feature, (B, D).
        domain: the features that may be chosen, bool (B, D).

    Returns:
        The pair, int64 (B, 2), and whether there is one with a positive product, bool (B,).
    """
    u, order = u.masked_fill(~domain, -torch.inf).sort(dim=1, descending=True)
    v = v.masked_fill(~domain, -torch.inf).gather(1, order)
    none = v.new_full((len(v), 1), -torch.inf)
    largest = torch.cat([none, v.cummax(1).values], 1)[:, :-1]  # before each feature
    second = torch.cat([none, torch.minimum(v, largest).cummax(1).values], 1)[:, :-1]
    remains = v > second
    count = max(int(remains.sum(1).max()), 1)
    # The positions of those that remain, padded with some that do not.
    positions = remains.byte().topk(count, dim=1).indices
    padded = ~remains.gather(1, positions)
    u, v = (part.gather(1, positions).masked_fill(padded, -torch.inf) for part in (u, v))
    distinct = torch.ones(count, count, dtype=torch.bool, device=u.device).triu(1)
    best = []
    for some_u, some_v in zip(*(part.split(max(PAIRS // count**2, 1)) for part in (u, v)), strict=True):
        sum_u, sum_v = (part[:, :, None] + part[:, None, :] for part in (some_u, some_v))
        best.append(torch.where((sum_u > 0) & (sum_v > 0) & distinct, sum_u * sum_v, 0).flatten(1).max(1))
    product, flat = (torch.cat(parts) for parts in zip(*best, strict=True))
    pair = torch.stack([flat // count, flat % count], 1)
    return order.gather(1, positions.gather(1, pair)), product > 0


class JSMA(MinimumNorm):
    """The Jacobian-based saliency map attack (Papernot et al. 2016, *The limitations of deep learning*, algorithm 3).

    To lead an image to class t, with ``a_i = dF_t/dx_i`` and ``b_i = sum_{j != t} dF_j/dx_i``, the two features p, q of
    largest ``-(a_p + a_q)(b_p + b_q)``, where ``a_p + a_q > 0`` and ``b_p + b_q < 0`` (both reversed for theta < 0),
    change by theta, clipped to the box; and again, until the class is t, until more than a share gamma of all features
    would have changed, or until no such pair is left. A feature at the box's edge cannot be chosen.

    F are the probabilities by default, as in *Distillation as a defense* (Papernot et al. 2016). They add up to 1, so b
    is -a. Where the softmax saturates, their gradients or the products underflow to exactly 0 and the attack ends:
    this is what defensive distillation does to it. Logits do not saturate.

    The authors' code takes a feature out of the search once it was changed, whatever theta; here, as in the paper,
    once it cannot move. At theta = 1 and images in [0, 1] that is the same. Every class is tried, whatever the suite
    asks, since each is noted: as ``features``, (B, C), the share of features changed where the class was reached, NaN
    where not and at the label; :func:`crafted` sums them up.

    Args:
        threat: radius, norm and box by which it is judged unless ``unlimited``.
        theta: the change of a feature at a time, in the units of the box; either sign. A small one takes many steps.
        gamma: the largest share of features that may change.
        target: the class to lead to; None leads to every class but the label, and the success that changes the fewest
            features is the result. Where there is none the image itself is.
        jacobian: F, ``probabilities`` or ``logits``.
        unlimited: see :class:`attacks.base.MinimumNorm`; few large changes have no small norm of another kind.
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        theta: float = 1.0,
        gamma: float = 0.145,
        target: int | None = None,
        jacobian: Jacobian = "probabilities",
        unlimited: bool = True,
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, unlimited, batchnorm)
        if theta == 0 or not math.isfinite(theta):
            raise ValueError(f"theta must be finite and not 0, got {theta}.")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma is a share of the features, above 0 and at most 1, got {gamma}.")
        if target is not None and target < 0:
            raise ValueError(f"target must be a class, 0 or more, got {target}.")
        if jacobian not in get_args(Jacobian):
            raise ValueError(f"jacobian must be one of {', '.join(get_args(Jacobian))}, got {jacobian!r}.")
        self.theta = theta
        self.gamma = gamma
        self.target = target
        self.jacobian = jacobian

    @property
    def name(self) -> str:
        parts = [
            "JSMA",
            "" if self.jacobian == "probabilities" else self.jacobian,
            "" if self.theta == 1 else f"theta {self.theta:g}",
            "" if self.gamma == 0.145 else f"gamma {self.gamma:g}",
            "" if self.target is None else f"to {self.target}",
            "limited" if self.limited else "",
        ]
        return " ".join(filter(None, parts))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        with torch.no_grad():
            classes = torch.arange(model(x).shape[1], device=x.device)
        if self.target is not None and self.target >= len(classes):
            raise ValueError(f"target must be one of the model's {len(classes)} classes, got {self.target}.")
        wanted = (classes != y[:, None]) & ((classes == self.target) | (self.target is None))
        images, targets = wanted.nonzero(as_tuple=True)
        result, shares = x.clone(), x.new_full(wanted.shape, torch.nan)
        size = max(len(x), POOL // x[0].numel())
        for image, target in zip(images.split(size), targets.split(size), strict=True):
            x_adv, reached = self._lead(narrow(model, image), x[image], target)
            changed = (x_adv != x[image]).flatten(1).to(x.dtype).mean(1)
            shares[image, target] = torch.where(reached, changed, torch.nan)
            best = shares.nan_to_num(nan=torch.inf).argmin(1)
            wins = reached & (best[image] == target)
            result[image[wins]] = x_adv[wins]
        note(model, "features", shares)
        return result

    def _lead(self, model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Leads every image to its target, (P,): where it got, shaped like ``x``, and whether it arrived, bool (P,)."""
        shape, x = x.shape[1:], x.flatten(1)
        limit = math.floor(self.gamma * x.shape[1] + 1e-9)  # 0.145 * 200 is 28.999999999999996
        sign = math.copysign(1, self.theta)
        result, arrived = x.clone(), torch.zeros_like(target, dtype=torch.bool)
        x_adv, rows = x, torch.arange(len(x), device=x.device)
        while len(rows):
            there, alpha, beta = self._derivatives(model, x_adv.unflatten(1, shape), target)
            ahead = (x_adv + self.theta).clamp(*self.bounds)
            pair, found = best_pair(sign * alpha, -sign * beta, ahead != x_adv)
            goes = ~there & found & ((x_adv != x).scatter(1, pair, True).sum(1) <= limit)
            result[rows], arrived[rows] = x_adv, there
            stays = goes.nonzero().squeeze(1)
            model, rows, x, target = narrow(model, stays), rows[stays], x[stays], target[stays]
            pair = pair[stays]
            x_adv = x_adv[stays].scatter(1, pair, ahead[stays].gather(1, pair))
        return result.unflatten(1, shape), arrived

    def _derivatives(self, model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each image is classified as its target, (P,), and alpha and beta of every feature, (P, D) each."""
        x = x.detach().requires_grad_()
        logits = model(x)
        there = logits.argmax(1) == target
        outputs = logits.to(x.dtype)
        if self.jacobian == "probabilities":
            own = outputs.softmax(1).gather(1, target[:, None])
            (alpha,) = torch.autograd.grad(own.sum(), x)
            return there, alpha.flatten(1), -alpha.flatten(1)
        own = outputs.gather(1, target[:, None])
        (alpha,) = torch.autograd.grad(own.sum(), x, retain_graph=True)
        (beta,) = torch.autograd.grad((outputs.sum(1, keepdim=True) - own).sum(), x)
        return there, alpha.flatten(1), beta.flatten(1)
