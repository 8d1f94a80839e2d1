"""Attacks of fixed radius that follow the sign or the direction of the input's gradient."""

from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import BatchNorm, input_gradient
from attacks.draws import Draws
from attacks.objectives import OBJECTIVES, Loss, check_loss
from attacks.threat import Radius, Threat


class FGSM(Attack):
    """One step of the whole radius (Goodfellow et al. 2015, eq. 2): ``x' = x + eps sign(grad CE(z(x), y))``.

    In l2 the step goes along the normalised gradient.
    """

    def __init__(self, threat: Threat | None = None, loss: Loss = "ce", batchnorm: BatchNorm = "eval") -> None:
        super().__init__(threat, batchnorm)
        self.loss = check_loss(loss)

    @property
    def name(self) -> str:
        return "FGSM" + ("" if self.loss == "ce" else f" {self.loss}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        gradient = input_gradient(model, x, y, OBJECTIVES[self.loss])
        return self.threat.project(x + self.threat.eps * self.threat.steepest(gradient), x)


class PGD(Attack):
    """Projected gradient ascent (Madry et al. 2018): ``x <- project(x + step * steepest(grad loss))``, K times.

    Args:
        threat: norm, radius and box.
        steps: K, the number of steps; the last iterate is the result.
        step_size: length of a step in the threat's norm; None takes Madry's ``2.5 eps / K``.
        random_start: start at a uniform draw from the ball, clamped to the box, rather than at the image.
        restarts: number of starts; an image's worst is kept, and only images that still stand are tried again.
        loss: ``ce``, ``margin``, or ``kl`` to the distribution that is given as ``y``.
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
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, batchnorm)
        if steps < 1 or restarts < 1:
            raise ValueError(f"PGD needs at least 1 step and 1 start, got steps={steps} and restarts={restarts}.")
        if restarts > 1 and not random_start:
            raise ValueError(f"restarts={restarts} without random_start would repeat the same attack.")
        self.steps = steps
        self.step_size = None if step_size is None else Radius(step_size)
        self.random_start = random_start
        self.restarts = restarts
        self.loss = check_loss(loss)

    @property
    def name(self) -> str:
        loss = "" if self.loss == "ce" else f" {self.loss}"
        restarts = "" if self.restarts == 1 else f" x{self.restarts}"
        return f"PGD-{self.steps}{loss}{restarts}"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        worst = self._climb(model, x, y, draws)
        if self.restarts == 1:
            return worst
        labels = y if y.dim() == 1 else y.argmax(1)
        broken, values = self._judge(model, worst, y, labels)
        for _ in range(1, self.restarts):
            if broken.all():
                break
            tried = self._climb(model, x, y, draws, ~broken)
            now_broken, now_values = self._judge(model, tried, y[~broken], labels[~broken])
            better = now_broken | (now_values > values[~broken])
            where = (~broken).nonzero().squeeze(1)[better]
            worst[where], values[where] = tried[better], now_values[better]
            broken[where] = now_broken[better]
        return worst

    def _climb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws, kept: Tensor | None = None) -> Tensor:
        """One run of K steps, of the images that ``kept`` selects.

        The start is drawn for all, so that a restart's draws do not depend on which other images still stand.
        """
        x_adv = self.threat.start(x, draws) if self.random_start else x
        if kept is not None:
            x, y, x_adv = x[kept], y[kept], x_adv[kept]
        step = 2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size
        for _ in range(self.steps):
            gradient = input_gradient(model, x_adv, y, OBJECTIVES[self.loss])
            x_adv = self.threat.project(x_adv + step * self.threat.steepest(gradient), x)
        return x_adv

    def _judge(self, model: nn.Module, x_adv: Tensor, y: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the examples change the prediction, and the objective that each reaches."""
        logits = model(x_adv).detach().float()
        return logits.argmax(1) != labels, OBJECTIVES[self.loss](logits, y)
