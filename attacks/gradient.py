"""Attacks of fixed radius that follow the sign or the direction of the input's gradient, and noise as their control."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import BatchNorm, ascend, narrow, upcast
from attacks.draws import Draws, hashed
from attacks.objectives import Goal, Loss, check_loss, likely_others
from attacks.threat import Radius, Threat


def called(name: str, loss: Loss, restarts: int = 1, targets: int = 0) -> str:
    """An attack's name in tables: what differs from its plain form is said."""
    parts = [name, "" if loss == "ce" else loss, f"{targets} targets" if targets else ""]
    return " ".join(filter(None, [*parts, f"x{restarts}" if restarts > 1 else ""]))


class FGSM(Attack):
    """One step of the whole radius (Goodfellow et al. 2015, eq. 2): ``x' = x + eps sign(grad CE(z(x), y))``.

    In l2 the step goes along the normalised gradient.
    """

    budget = 1

    def __init__(self, threat: Threat | None = None, loss: Loss = "ce", batchnorm: BatchNorm = "eval") -> None:
        super().__init__(threat, batchnorm)
        self.loss = check_loss(loss)

    @property
    def name(self) -> str:
        return called("FGSM", self.loss)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        _, _, gradient = ascend(model, x, Goal(self.loss, y))
        return self.threat.project(x + self.threat.eps * self.threat.steepest(gradient), x)


class Noise(Attack):
    """Uniform draws from the ball: a control that any attack worth its name beats.

    Args:
        threat: norm, radius and box.
        samples: draws of each image; one that changes the class is kept.
    """

    def __init__(self, threat: Threat | None = None, samples: int = 10, batchnorm: BatchNorm = "eval") -> None:
        super().__init__(threat, batchnorm)
        if samples < 1:
            raise ValueError(f"Noise needs at least 1 sample, got {samples}.")
        self.samples = samples

    @property
    def name(self) -> str:
        return f"noise x{self.samples}"

    @property
    def exhaustive(self) -> bool:
        return self.samples == 1

    @property
    def budget(self) -> int:
        return self.samples

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        def draw(kept: Tensor, number: int) -> Tensor:
            return self.threat.start(x[kept], draws.stream(number)[kept])

        return in_turn(model, x, Goal("margin", y), self.samples, draw, self.deterministic)


class PGD(Attack):
    """Projected gradient ascent (Madry et al. 2018): ``x <- project(x + step * steepest(grad loss))``, K times.

    While a suite runs it, an image leaves as soon as an iterate breaks it. There, too, an image whose path has come
    back to a point where it has been leaves: the step is fixed and the gradient a function of the point, so it would
    go round for ever (arXiv 2503.19347). Points are compared by a 64-bit hash of all their bits.

    Args:
        threat: norm, radius and box.
        steps: K, the number of steps; the last iterate is the result.
        step_size: length of a step in the threat's norm; None takes Madry's ``2.5 eps / K``.
        random_start: start at a uniform draw from the ball, clamped to the box, rather than at the image.
        restarts: number of starts; an image's worst is kept, and only images that still stand are tried again.
        loss: ``ce``, ``margin`` (Carlini & Wagner), ``dlr``, or ``kl`` to the distribution that is given as ``y``.
        targets: 0 leads away from the label; k leads to each of the k most likely other classes in turn, and keeps
            the worst (Gowal et al. 2019).
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        steps: int = 10,
        step_size: Radius | None = None,
        random_start: bool = True,
        restarts: int = 1,
        loss: Loss = "ce",
        targets: int = 0,
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, batchnorm)
        if steps < 1 or restarts < 1:
            raise ValueError(f"PGD needs at least 1 step and 1 start, got steps={steps} and restarts={restarts}.")
        if restarts > 1 and not random_start:
            raise ValueError(f"restarts={restarts} without random_start would repeat the same attack.")
        if targets < 0:
            raise ValueError(f"targets must be at least 0, got {targets}.")
        self.steps = steps
        self.step_size = None if step_size is None else Radius(step_size)
        self.random_start = random_start
        self.restarts = restarts
        self.loss = check_loss(loss, targets)
        self.targets = targets

    @property
    def name(self) -> str:
        return called(f"PGD-{self.steps}", self.loss, self.restarts, self.targets)

    @property
    def exhaustive(self) -> bool:
        return self.restarts == 1 and not self.targets

    @property
    def budget(self) -> int:
        runs = self.restarts * max(self.targets, 1)
        return runs * (self.steps + (runs > 1)) + bool(self.targets)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return self.maximise(model, x, Goal(self.loss, y), draws)

    def maximise(self, model: nn.Module, x: Tensor, goal: Goal, draws: Draws) -> Tensor:
        """The attack on a goal of one's own; called inside :func:`attacks.crafting.crafting`."""

        def climb(kept: Tensor, number: int, goal: Goal) -> Tensor:
            start = self.threat.start(x[kept], draws.stream(number)[kept]) if self.random_start else x[kept]
            return self._climb(narrow(model, kept), x[kept], goal, start)

        return with_restarts(model, x, goal, self.restarts, self.targets, climb, self.deterministic)

    def _climb(self, model: nn.Module, x: Tensor, goal: Goal, x_adv: Tensor) -> Tensor:
        """One run of K steps."""
        step_size = 2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size
        result, rows = x_adv.clone(), torch.arange(len(x), device=x.device)
        been = torch.empty(len(x), self.steps if self.early_stop else 0, dtype=torch.int64, device=x.device)
        for step in range(self.steps):
            logits, _, gradient = ascend(model, x_adv, goal)
            if self.early_stop:
                leaves = goal.broken(logits)
                been[:, step] = hashed(x_adv)
                leaves |= (been[:, :step] == been[:, step, None]).any(1)
                if leaves.any():
                    result[rows[leaves]] = x_adv[leaves]
                    stays = (~leaves).nonzero().squeeze(1)
                    model, goal, rows = narrow(model, stays), goal[stays], rows[stays]
                    x, x_adv, gradient, been = x[stays], x_adv[stays], gradient[stays], been[stays]
                    if not len(rows):
                        break
            x_adv = self.threat.project(x_adv + step_size * self.threat.steepest(gradient), x)
        result[rows] = x_adv
        return result


class MIFGSM(Attack):
    """Momentum iterative FGSM (Dong et al. 2018, eq. 6, 7), from the image itself.

    ``g <- decay g + grad / |grad|_1`` and ``x <- project(x + (eps / K) steepest(g))``, K times.

    Args:
        threat: norm, radius and box.
        steps: K.
        decay: how much of the earlier directions is kept; 0 leaves the iterative FGSM.
        loss: see :class:`PGD`.
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        steps: int = 20,
        decay: float = 1.0,
        loss: Loss = "ce",
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, batchnorm)
        if steps < 1 or decay < 0:
            raise ValueError(f"MI-FGSM needs at least 1 step and a decay of at least 0, got {steps} and {decay}.")
        self.steps = steps
        self.decay = decay
        self.loss = check_loss(loss)

    @property
    def name(self) -> str:
        return called(f"MI-FGSM-{self.steps}", self.loss)

    @property
    def budget(self) -> int:
        return self.steps

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        goal = Goal(self.loss, y)
        x_adv, momentum = x, torch.zeros_like(x)
        result, rows = x.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            logits, _, gradient = ascend(model, x_adv, goal)
            if self.early_stop and (leaves := goal.broken(logits)).any():
                result[rows[leaves]] = x_adv[leaves]
                stays = (~leaves).nonzero().squeeze(1)
                model, goal, rows, x = narrow(model, stays), goal[stays], rows[stays], x[stays]
                x_adv, momentum, gradient = x_adv[stays], momentum[stays], gradient[stays]
                if not len(rows):
                    break
            size = gradient.abs().flatten(1).sum(1).view(-1, *[1] * (x.dim() - 1))
            momentum = self.decay * momentum + gradient / size.clamp_min(torch.finfo(x.dtype).tiny)
            x_adv = self.threat.project(x_adv + self.threat.eps / self.steps * self.threat.steepest(momentum), x)
        result[rows] = x_adv
        return result


def in_turn(
    model: nn.Module,
    x: Tensor,
    goal: Goal,
    attempts: int,
    attempt: Callable[[Tensor, int], Tensor],
    deterministic: bool = True,
) -> Tensor:
    """Makes attempts one after another, each on the images that still stand, and keeps the worst of every image.

    Args:
        model: maps images to logits.
        x: the clean images.
        goal: by which the attempts are compared on images that none of them breaks.
        attempts: how many.
        attempt: called with the positions of the images that stand, (k,), and the attempt's number; gives examples.
        deterministic: False for a model that draws at random: every attempt is then made on every image.
    """
    worst, value = x.clone(), x.new_full((len(x),), -torch.inf)
    stands = torch.arange(len(x), device=x.device)
    for number in range(attempts):
        tried = attempt(stands, number)
        if attempts == 1:
            return tried
        with torch.no_grad():
            logits = upcast(narrow(model, stands)(tried))
        left = goal[stands]
        broken, reached = left.broken(logits) & deterministic, left(logits).to(value.dtype)
        better = broken | (reached > value[stands])
        worst[stands[better]], value[stands[better]] = tried[better], reached[better]
        stands = stands[~broken]
        if not len(stands):
            break
    return worst


def with_restarts(
    model: nn.Module,
    x: Tensor,
    goal: Goal,
    restarts: int,
    targets: int,
    climb: Callable[[Tensor, int, Goal], Tensor],
    deterministic: bool = True,
) -> Tensor:
    """Runs a climb from several starts, untargeted or to each of the most likely other classes in turn.

    Args:
        model: maps images to logits.
        x: the clean images.
        goal: what is climbed where there are no targets, and by which runs are compared.
        restarts: starts of each target.
        targets: how many classes to lead to; 0 for none.
        climb: called with the positions of the images that stand, the run's number and its goal; gives examples.
        deterministic: see :func:`in_turn`.
    """
    if not targets:
        return in_turn(model, x, goal, restarts, lambda kept, number: climb(kept, number, goal[kept]), deterministic)
    with torch.no_grad():
        others = likely_others(model(x), goal.y, targets)

    def lead(kept: Tensor, number: int) -> Tensor:
        target = others[kept, number // restarts]
        return climb(kept, number, Goal(goal.loss, goal.y[kept], target))

    return in_turn(model, x, goal, others.shape[1] * restarts, lead, deterministic)
