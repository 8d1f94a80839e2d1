"""The smallest change of a point in a box that takes it to a hyperplane."""

import torch
from torch import Tensor

from attacks.threat import Norm


def to_hyperplane(t: Tensor, w: Tensor, gap: Tensor, low: float, high: float, norm: Norm) -> Tensor:
    """The smallest ``d`` with ``w . d = gap`` and ``low <= t + d <= high``.

    Optimal coordinates move together until they meet the box: ``d_i = sign(gap w_i) min(lam v_i, room_i)`` with
    ``v_i = 1`` (linf) or ``|w_i|`` (l2), and ``lam`` solves ``f(lam) = sum_i |w_i| min(lam v_i, room_i) = |gap|``. As
    ``f`` is concave, increasing and piecewise linear, Newton's method from 0 climbs to the solution without passing
    it, in finitely many steps: few, since each settles every coordinate that has met the box. Nothing is sorted, and
    what is summed are products of one sign.

    Args:
        t: points inside the box, (..., D).
        w: the planes' normals, broadcast against ``t``; of a plane with ``w = 0`` no point comes nearer.
        gap: how far ``w . t`` has to rise, (...). It is asked for, rather than the plane's offset, because near the
            plane the difference of the two would have lost its digits.
        low: lowest value of a coordinate.
        high: highest value.
        norm: in which ``d`` is smallest.

    Returns:
        ``d``, shaped like ``t``. Where the plane misses the box, it leads to the point of the box next to the plane:
        every coordinate that matters at its limit.
    """
    limits = torch.finfo(t.dtype)
    # Scaled, for the squares of a small gradient underflow.
    largest = w.abs().amax(-1, keepdim=True).clamp_min(limits.tiny)
    w, gap = w / largest, gap.unsqueeze(-1) / largest
    weight, wanted, side = w.abs(), gap.abs(), gap.sign() * w.sign()
    room = torch.where(side > 0, high - t, t - low).clamp_min(0) * side.abs()
    slope = weight if norm == "linf" else weight * weight
    most = weight * room
    # Where even that is not enough nothing is free, and every coordinate goes to its limit.
    missed = wanted >= most.sum(-1, keepdim=True)
    free = (room > 0) & ~missed
    lam = torch.where(missed, limits.max, torch.zeros_like(wanted))
    while True:
        settled = torch.where(free, 0.0, most).sum(-1, keepdim=True)
        rate = torch.where(free, slope, 0.0).sum(-1, keepdim=True).clamp_min(limits.tiny)
        lam = torch.maximum(lam, ((wanted - settled) / rate).clamp_max(limits.max))
        step = lam if norm == "linf" else lam * weight
        left = free & (step < room)
        if left.equal(free):
            return side * torch.minimum(step, room)
        free = left
