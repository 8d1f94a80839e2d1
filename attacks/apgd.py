"""Auto-PGD: projected gradient ascent with momentum, whose steps adapt themselves."""

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import BatchNorm, ascend, narrow
from attacks.draws import Draws
from attacks.gradient import with_restarts
from attacks.objectives import Goal, Loss, check_loss
from attacks.threat import Threat


class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1), from a random point of the ball's surface.

    ``z = project(x_k + step * steepest(grad))``, ``x_k+1 = project(x_k + 3/4 (z - x_k) + 1/4 (x_k - x_k-1))``. At
    checkpoints an image whose loss rose in fewer than 3/4 of the steps since the last one, or whose best has not risen
    since a checkpoint that left its step as it was, halves its step and goes on from its best point. The authors' code
    compares the first iterate's loss with 0 instead of the start's; so does this.

    The result is the point that broke the image, or else the one of highest loss.

    Args:
        threat: norm, radius and box.
        steps: number of steps.
        restarts: number of starts (of each target).
        loss: ``ce``, ``dlr``, ``margin``, or ``kl`` to the distribution that is given as ``y``.
        targets: 0 leads away from the label; k leads to each of the k most likely other classes in turn.
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        steps: int = 100,
        restarts: int = 1,
        loss: Loss = "ce",
        targets: int = 0,
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, batchnorm)
        if steps < 1 or restarts < 1 or targets < 0:
            raise ValueError(
                "APGD needs at least 1 step, 1 start and 0 targets, "
                f"got steps={steps}, restarts={restarts}, targets={targets}."
            )
        self.steps = steps
        self.restarts = restarts
        self.loss = check_loss(loss, targets)
        self.targets = targets

    @property
    def name(self) -> str:
        # AutoAttack's names: its targeted loss is DLR.
        kind = "T" if self.targets else ""
        kind = "-".join(filter(None, [kind, "" if kind and self.loss == "dlr" else self.loss.upper()]))
        return " ".join(
            filter(
                None,
                [
                    f"APGD-{kind}",
                    f"{self.steps} steps" if self.steps != 100 else "",
                    f"x{self.restarts}" if self.restarts > 1 else "",
                ],
            )
        )

    @property
    def exhaustive(self) -> bool:
        return self.restarts == 1 and not self.targets

    @property
    def budget(self) -> int:
        runs = self.restarts * max(self.targets, 1)
        return runs * (self.steps + 1 + (runs > 1)) + bool(self.targets)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        def climb(kept: Tensor, number: int, goal: Goal) -> Tensor:
            return self._climb(narrow(model, kept), x[kept], goal, draws.stream(number)[kept])

        return with_restarts(model, x, Goal(self.loss, y), self.restarts, self.targets, climb, self.deterministic)

    def _start(self, x: Tensor, draws: Draws) -> Tensor:
        """A random point at the distance of the radius, clamped to the box."""
        shape = x.shape[1:]
        drawn = draws.uniform(shape, -1.0, 1.0) if self.threat.norm == "linf" else draws.normal(shape)
        drawn = drawn.to(x.dtype)  # before it is brought to length, so that rounding keeps it in the ball
        length = self.threat.length(drawn).view(-1, *[1] * len(shape))
        return self.threat.clamp(x + self.threat.eps * drawn / length.clamp_min(1e-12))

    def _climb(self, model: nn.Module, x: Tensor, goal: Goal, draws: Draws) -> Tensor:
        """One run: every tensor below has a row per image that is still in it, but for ``result``."""
        threat, wide = self.threat, (-1, *[1] * (x.dim() - 1))
        x_adv = self._start(x, draws)
        logits, loss, gradient = ascend(model, x_adv, goal)
        result, rows = x_adv.clone(), torch.arange(len(x), device=x.device)
        broken = goal.broken(logits)  # ever: the result is a point where the image was broken
        old, best, best_gradient, best_loss = x_adv, x_adv, gradient, loss
        step = x.new_full((len(x),), 2.0 * threat.eps)
        rises, before = torch.zeros_like(step), torch.zeros_like(loss)
        halved, loss_at_check = torch.ones_like(broken), best_loss
        window, since = max(int(0.22 * self.steps), 1), 0
        for number in range(self.steps):
            if self.early_stop and broken.any():
                stays = (~broken).nonzero().squeeze(1)
                model, goal, rows, broken = narrow(model, stays), goal[stays], rows[stays], broken[stays]
                x, x_adv, old, gradient = x[stays], x_adv[stays], old[stays], gradient[stays]
                best, best_gradient, best_loss = best[stays], best_gradient[stays], best_loss[stays]
                step, rises, before = step[stays], rises[stays], before[stays]
                halved, loss_at_check = halved[stays], loss_at_check[stays]
                if not len(rows):
                    return result
            ahead = threat.project(x_adv + step.view(wide) * threat.steepest(gradient), x)
            if number:
                ahead = threat.project(x_adv + 0.75 * (ahead - x_adv) + 0.25 * (x_adv - old), x)
            old, x_adv = x_adv, ahead
            logits, loss, gradient = ascend(model, x_adv, goal)
            now = goal.broken(logits)
            result[rows[now]] = x_adv[now]
            broken = broken | now
            rises = rises + (loss > before)
            before = loss
            higher = loss > best_loss
            best = torch.where(higher.view(wide), x_adv, best)
            best_gradient = torch.where(higher.view(wide), gradient, best_gradient)
            best_loss = torch.where(higher, loss, best_loss)
            since += 1
            if since == window:
                stuck = (rises <= 0.75 * window) | (~halved & (loss_at_check >= best_loss))
                step = torch.where(stuck, step / 2, step)
                x_adv = torch.where(stuck.view(wide), best, x_adv)
                gradient = torch.where(stuck.view(wide), best_gradient, gradient)
                halved, loss_at_check, rises = stuck, best_loss, torch.zeros_like(rises)
                window, since = max(window - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1)), 0
        result[rows[~broken]] = best[~broken]
        return result
