"""The Square attack: random search by square patches, which asks the model for nothing but logits."""

import math

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import BatchNorm, narrow
from attacks.draws import Draws
from attacks.gradient import in_turn
from attacks.objectives import Goal
from attacks.threat import Threat

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the queries after which the windows' area halves
BLOCK = 64  # queries whose draws are made at once


class Square(Attack):
    """Square attack (Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1-3), as AutoAttack runs it.

    A random search on the margin ``max_{i != y} z_i - z_y``: a query changes one square window of the best point so
    far, and the change is kept where the margin rises or the image breaks. The windows' area is a share p of the
    image, ``p_init`` at first and half as much after each of 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries.

    - linf: from vertical stripes at ``x ± eps``; a window becomes ``x + eps sign``, one random sign per channel.
    - l2: from a grid of small patterns, scaled to the ball's surface. A pattern has a peak above and a trough below,
      or side by side, of either sign in each channel. A window's perturbation becomes the sum of its own direction
      and a pattern, and takes over the length of a second window, which is wiped, and what the box had cut off.

    Every image draws its own windows, where the authors' code draws one for all images of the batch, and its windows
    reach the image's last row and column, as the paper has it. Windows in l2 are at least 3 pixels wide, or as wide as
    a smaller image; in a window of one pixel the pattern, a sign, replaces what was there, for two signs would cancel.
    Images without two spatial dimensions are taken for one pixel of many channels. An image that breaks leaves at once,
    and one that is broken at its first point, misclassified from the start for instance, costs one query.

    Args:
        threat: norm, radius and box.
        queries: queries after the first, of each start.
        p_init: the first windows' share of the image, in (0, 1].
        restarts: number of starts; only images that still stand are tried again.
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        queries: int = 5000,
        p_init: float = 0.8,
        restarts: int = 1,
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, batchnorm)
        if queries < 1 or restarts < 1:
            raise ValueError(f"Square needs at least 1 query and 1 start, got queries={queries}, restarts={restarts}.")
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init is a share of the image in (0, 1], got {p_init}.")
        self.queries = queries
        self.p_init = p_init
        self.restarts = restarts

    @property
    def name(self) -> str:
        parts = [
            "Square",
            f"{self.queries} queries" if self.queries != 5000 else "",
            f"p={self.p_init:g}" if self.p_init != 0.8 else "",
            f"x{self.restarts}" if self.restarts > 1 else "",
        ]
        return " ".join(filter(None, parts))

    @property
    def exhaustive(self) -> bool:
        return False

    @property
    def budget(self) -> int:
        return self.restarts * (self.queries + 1 + (self.restarts > 1))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        goal = Goal("margin", y)

        def search(kept: Tensor, number: int) -> Tensor:
            return self._search(narrow(model, kept), x[kept], goal[kept], draws.stream(number)[kept])

        with torch.no_grad():
            return in_turn(model, x, goal, self.restarts, search, self.deterministic)

    def _search(self, model: nn.Module, x: Tensor, goal: Goal, draws: Draws) -> Tensor:
        """One random search: every tensor below has a row, flat, per image that is still in it, but for ``result``."""
        linf, shape = self.threat.norm == "linf", x.shape
        grid = Grid(x)
        x = x.flatten(1)
        best = self._stripes(x, grid, draws) if linf else self._tiles(x, grid, draws)
        logits = model(best.view(shape)).float()
        value, broken = goal(logits), goal.broken(logits)
        result, rows = best.clone(), torch.arange(len(x), device=x.device)
        numbers = grid.channels + (2 if linf else 5)
        for query in range(self.queries):
            if query % BLOCK == 0:
                block = draws.uniform((BLOCK, numbers))
            if self.deterministic and broken.any():
                result[rows[broken]] = best[broken]
                stays = (~broken).nonzero().squeeze(1)
                if not len(stays):
                    return result.view(shape)
                model, goal, rows, value = narrow(model, stays), goal[stays], rows[stays], value[stays]
                x, best, draws, block = x[stays], best[stays], draws[stays], block[stays]
            side = grid.side(self.p_init / 2 ** sum(query > mark for mark in HALVINGS), least=1 if linf else 3)
            drawn = block[:, query % BLOCK]
            if linf:
                # The best point itself is tried with its window changed, and mended where that is worse.
                window = grid.window(drawn[:, :2], side)
                before = best.gather(1, window)
                signs = _signs(drawn[:, 2:]).to(x.dtype).repeat_interleave(side * side, 1)
                patch = self.threat.clamp(x.gather(1, window) + float(self.threat.eps) * signs)
                tried = best.scatter_(1, window, patch)
            else:
                tried = self._moved(x, best, grid, side, drawn)
            logits = model(tried.view(-1, *shape[1:])).float()
            reached, broken = goal(logits), goal.broken(logits)
            better = broken | (reached > value)
            value = torch.where(better, reached, value)
            if linf:
                best.scatter_(1, window, torch.where(better[:, None], patch, before))
            else:
                best = torch.where(better[:, None], tried, best)
        result[rows] = best
        return result.view(shape)

    def _stripes(self, x: Tensor, grid: "Grid", draws: Draws) -> Tensor:
        """A sign per channel and column, times eps."""
        signs = _signs(draws.uniform((grid.channels, 1, grid.width))).to(x.dtype)
        delta = signs.expand(-1, -1, grid.height, -1).flatten(1)
        return self.threat.clamp(x + float(self.threat.eps) * delta)

    def _tiles(self, x: Tensor, grid: "Grid", draws: Draws) -> Tensor:
        """Patterns side by side, five along the shorter edge where it is long enough; per channel and tile a sign."""
        side = max(min(grid.height, grid.width) // 5, 1)
        down, across = grid.height // side, grid.width // side
        turned = (draws.uniform((1, down, across)) < 0.5).long()
        signs = _signs(draws.uniform((grid.channels, down, across))).to(x.dtype)
        tiles = grid.pattern(side)[turned] * signs[..., None, None]
        delta = x.new_zeros(len(x), grid.channels, grid.height, grid.width)
        top, left = (grid.height - down * side) // 2, (grid.width - across * side) // 2
        patterns = tiles.transpose(3, 4).reshape(len(x), grid.channels, down * side, across * side)
        delta[:, :, top : top + down * side, left : left + across * side] = patterns
        return self._on_the_surface(x, delta.flatten(1))

    def _on_the_surface(self, x: Tensor, delta: Tensor) -> Tensor:
        """The perturbations at the length of the radius, clamped to the box."""
        length = delta.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return self.threat.clamp(x + delta * (float(self.threat.eps) / length))

    def _moved(self, x: Tensor, best: Tensor, grid: "Grid", side: int, drawn: Tensor) -> Tensor:
        """The l2 candidates: a window gets a pattern, and the length of what is wiped in another."""
        by_channel = (-1, grid.channels, side * side)
        delta = best - x
        spare = (float(self.threat.eps) ** 2 - delta.square().sum(1, keepdim=True)).clamp_min(0)
        window, wiped = grid.window(drawn[:, :2], side), grid.window(drawn[:, 2:4], side)
        old = delta.gather(1, window).view(by_channel)
        delta.scatter_(1, window, 0.0)  # so that pixels of both windows count once
        other = delta.gather(1, wiped).view(by_channel)
        delta.scatter_(1, wiped, 0.0)
        freed = old.square().sum(2, keepdim=True) + other.square().sum(2, keepdim=True)
        pattern = grid.pattern(side).flatten(1)[(drawn[:, 4] < 0.5).long()]
        new = _signs(drawn[:, 5:]).to(x.dtype)[:, :, None] * pattern[:, None]
        if side > 1:
            new = new + old / old.norm(dim=2, keepdim=True).clamp_min(1e-12)
        length = (spare[:, :, None] / grid.channels + freed).sqrt()
        new = new * (length / new.norm(dim=2, keepdim=True).clamp_min(1e-12))
        return self._on_the_surface(x, delta.scatter_(1, window, new.flatten(1)))


class Grid:
    """Where the pixels of flat images are, and what windows of one size after another have in common."""

    def __init__(self, x: Tensor) -> None:
        self.height, self.width = x.shape[-2:] if x.dim() > 3 else (1, 1)
        self.channels = math.prod(x.shape[1:]) // (self.height * self.width)
        self.like = x.new_empty(0)
        self._side, self._offsets, self._pattern = 0, self.like, self.like

    def side(self, share: float, least: int) -> int:
        """The edge of a square window of this share of the image; odd, like ``least``, where that is 3."""
        side = max(round(math.sqrt(share * self.height * self.width)), least)
        side += least == 3 and side % 2 == 0
        return min(side, self.height, self.width)

    def window(self, drawn: Tensor, side: int) -> Tensor:
        """The places of the pixels of windows at positions that follow from two uniform draws, (B, 2).

        Returns:
            int64 (B, channels * side * side), for gather and scatter.
        """
        self._measure(side)
        top = (drawn[:, :1] * (self.height - side + 1)).long()
        left = (drawn[:, 1:] * (self.width - side + 1)).long()
        return top * self.width + left + self._offsets

    def pattern(self, side: int) -> Tensor:
        """The l2 pattern with its peak above its trough, and with the two side by side: (2, side, side)."""
        self._measure(side)
        return self._pattern

    def _measure(self, side: int) -> None:
        if side != self._side:
            pixel = torch.arange(side, device=self.like.device)
            plane = torch.arange(self.channels, device=self.like.device)[:, None, None]
            self._offsets = ((plane * self.height + pixel[:, None]) * self.width + pixel).flatten()
            upright = peak_and_trough(side, self.like)
            self._side, self._pattern = side, torch.stack([upright, upright.T])


def peak_and_trough(side: int, like: Tensor) -> Tensor:
    """The l2 pattern, of unit length, in the dtype and on the device of ``like``: (side, side).

    A half of h rows and w columns has its peak of ``sum_{k <= n} 1 / (k + 1)^2`` at (h // 2, w // 2), with
    ``n = max(h // 2, w // 2)``; r pixels away, in the larger coordinate, the terms of k < r are missing.
    """
    halves = []
    for height in (side // 2, side - side // 2):
        terms = 1 / torch.arange(1, side // 2 + 2, device=like.device, dtype=like.dtype) ** 2
        heights = terms.flip(0).cumsum(0).flip(0)
        rows = (torch.arange(height, device=like.device) - height // 2).abs()
        columns = (torch.arange(side, device=like.device) - side // 2).abs()
        half = heights[torch.maximum(rows[:, None], columns)]
        halves.append(half / half.norm().clamp_min(1e-12))
    pattern = torch.cat([halves[0], -halves[1]])
    return pattern / pattern.norm()


def _signs(drawn: Tensor) -> Tensor:
    """Uniform draws from [0, 1) as signs."""
    return torch.where(drawn < 0.5, -1.0, 1.0)
