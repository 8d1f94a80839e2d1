"""The shape of an attack: ``attack(model, x, y) -> x_adv``."""

import copy
from abc import ABC, abstractmethod
from typing import Self, get_args

from torch import Tensor, nn

from attacks.crafting import BatchNorm, crafting, tempered
from attacks.draws import Draws
from attacks.threat import Threat


class Attack(ABC):
    """A configured attack on any module that maps images to logits.

    Args:
        threat: what it may do to an image; None leaves it to the suite that runs the attack.
        batchnorm: mode of batch-norm layers while crafting; ``train`` is what the authors' code of ARD does.
    """

    def __init__(self, threat: Threat | None = None, batchnorm: BatchNorm = "eval") -> None:
        if batchnorm not in get_args(BatchNorm):
            raise ValueError(f"batchnorm must be one of {', '.join(get_args(BatchNorm))}, got {batchnorm!r}.")
        self.given_threat = threat
        self.batchnorm = batchnorm

    @property
    def threat(self) -> Threat:
        """The threat model. Raises ValueError where there is none yet."""
        if self.given_threat is None:
            raise ValueError(f"{type(self).__name__} has no threat model: give it threat=Threat('linf', '8/255').")
        return self.given_threat

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    def under(self, threat: Threat) -> Self:
        """This attack with a threat model and its box, keeping what it states itself."""
        attack = copy.copy(self)
        own = attack.given_threat
        attack.given_threat = threat if own is None else own.within(threat.bounds)
        return attack

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws | None = None) -> Tensor:
        """Crafts adversarial examples; the model is untouched (see :func:`attacks.crafting.crafting`).

        Args:
            model: maps images (B, C, H, W) to logits (B, classes).
            x: images inside the box.
            y: the labels to move away from, (B,), or a distribution (B, classes) where the loss is ``kl``.
            draws: the images' random draws; None takes fresh ones from torch's global generator.

        Returns:
            Images shaped like ``x``, inside the box, and inside the ball for attacks of fixed radius.
        """
        with crafting(model, self.batchnorm):
            # Tensors made under inference mode cannot enter a graph; their copies made here can.
            x, y = x.detach().clone(), y.detach().clone()
            return self.perturb(model, x, y, draws or Draws.fresh(len(x), x.device)).detach()

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """The attack itself, called with the model frozen, in eval mode and with grad mode on."""


class Strong(Attack):
    """Any attack run on ``z / T``: what Carlini & Wagner (2016) showed against defensive distillation.

    A network trained at a high temperature and used at T = 1 saturates its softmax, so that cross-entropy has no
    gradient left in float32; dividing the logits by T brings it back. Success is judged on the original model.

    Args:
        attack: the attack to strengthen.
        temperature: T; None stands for the temperature that the attacked model was trained at.
    """

    def __init__(self, attack: Attack, temperature: float | None = None) -> None:
        super().__init__(attack.given_threat, attack.batchnorm)
        self.attack = attack
        self.temperature = temperature

    @property
    def name(self) -> str:
        return f"{self.attack.name} strong" + ("" if self.temperature is None else f" T={self.temperature:g}")

    def under(self, threat: Threat) -> Self:
        strong = super().under(threat)
        strong.attack = self.attack.under(threat)
        return strong

    def at(self, temperature: float) -> "Strong":
        """The same with a temperature filled in where none is given."""
        return self if self.temperature is not None else Strong(self.attack, temperature)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        if self.temperature is None:
            raise ValueError(f"{self.name} needs a temperature: give temperature=T, the one the model was trained at.")
        # Not by calling it: the model is frozen by now, in the mode that the attack asked for.
        return self.attack.perturb(tempered(model, self.temperature), x, y, draws)
