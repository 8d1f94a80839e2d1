"""Adversarial training by one gradient: FGSM from a random start, and N-FGSM.

Both may overfit catastrophically: within an epoch, robustness against PGD falls to nothing while the training loss
looks better than before. Every regime with an adversary is watched for it (see :class:`lightning_modules.Regime`).
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from attacks import PGD, Attack, Draws, Radius, Threat, ascend
from attacks.objectives import Goal
from lightning_modules.adversarial_training import AdversarialTraining


class FGSMRS(AdversarialTraining):
    """``CE(z(x'), y)``, x' by one step from a uniform draw in the ball: ``x' = project(x + u + s sign(grad))``.

    Source: Wong et al. 2020, Algorithm 3, with their step s = 1.25 eps. Their code takes the gradient with batch-norm
    in train mode; ours in eval mode.

    Per step: student 2 forwards, 2 backwards.

    Args:
        threat: the ball.
        step: length of the step as a multiple of the radius, above 0.
    """

    def __init__(self, threat: Threat, step: float = 1.25, **kwargs: Any) -> None:
        _check_step(step)
        super().__init__(attack=PGD(threat, steps=1, step_size=Radius(step * threat.eps)), **kwargs)


class NFGSM(AdversarialTraining):
    """``CE(z(x'), y)``, ``x' = x + u + s sign(grad CE(z(x + u), y))``, u uniform in a ball of k times the radius.

    Source: de Jorge et al. 2022, Algorithm 1, k = 2 and s = eps. Neither the noise nor the step is projected to the
    ball, so an example may lie k + 1 radii away; both stay inside the box. The authors' code takes the gradient with
    batch-norm in train mode; ours in eval mode.

    Per step: student 2 forwards, 2 backwards.

    Args:
        threat: the ball that the network shall withstand.
        reach: k, radius of the noise as a multiple of the threat's, at least 0.
        step: length of the step as a multiple of the radius, above 0.
    """

    def __init__(self, threat: Threat, reach: float = 2.0, step: float = 1.0, **kwargs: Any) -> None:
        if not reach >= 0:
            raise ValueError(f"A noise level must be at least 0, got reach={reach}.")
        _check_step(step)
        super().__init__(attack=NoisyStep(threat, reach, step), **kwargs)


class NoisyStep(Attack):
    """N-FGSM's example. It may leave the ball, so it trains and does not judge."""

    name = "N-FGSM"
    budget = 1

    def __init__(self, threat: Threat, reach: float, step: float) -> None:
        super().__init__(threat)
        self.reach = reach
        self.step = step

    def perturb(self, model: Any, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        eps = self.threat.eps
        noisy = replace(self.threat, eps=Radius(self.reach * eps)).start(x, draws)
        _, _, gradient = ascend(model, noisy, Goal("ce", y))
        return self.threat.clamp(noisy + self.step * eps * self.threat.steepest(gradient))


def _check_step(step: float) -> None:
    if not step > 0:
        raise ValueError(f"step is a multiple of the radius and must be above 0, got {step}.")
