"""The shape of an attack: ``attack(model, x, y) -> x_adv``."""

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Self, get_args

import torch
from torch import Tensor, nn

from attacks.crafting import BatchNorm, crafting
from attacks.draws import Draws
from attacks.threat import Radius, Threat


class Attack(ABC):
    """A configured attack on any module that maps images to logits.

    Args:
        threat: what it may do to an image; None leaves it to the suite that runs the attack.
        batchnorm: mode of batch-norm layers while crafting; ``train`` is what the authors' code of ARD does.

    Attributes:
        early_stop: leave an image alone as soon as it is broken. Training crafts without: its examples have made all
            their steps. A suite asks for it (:meth:`evaluating`), since a broken image cannot be broken further.
        deterministic: whether the model answers the same each time. Of one that draws at random no single answer says
            that an image is broken: no image leaves, and every part of an attack is tried on it.
        limited: whether an example counts only within the threat's radius.
    """

    early_stop = False
    deterministic = True
    limited = True

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

    @property
    def exhaustive(self) -> bool:
        """Whether, without ``early_stop``, it makes all its steps on every image; top-k accuracies mean that."""
        return True

    @property
    def budget(self) -> int | None:
        """The most forward passes that an image may cost, by which progress is told; None where nobody knows."""
        return None

    def under(self, threat: Threat) -> Self:
        """This attack with a threat model and its box, keeping what it states itself."""
        attack = copy.copy(self)
        own = attack.given_threat
        attack.given_threat = threat if own is None else own.within(threat.bounds)
        return attack

    def resized(self, eps: Radius) -> Self:
        """This attack with another radius."""
        attack = copy.copy(self)
        attack.given_threat = replace(self.threat, eps=eps)
        return attack

    def at(self, temperature: float) -> Self:
        """This attack with the temperature that the model was trained at, where it needs one and was given none."""
        return self

    def evaluating(self, deterministic: bool = True) -> Self:
        """This attack as a suite runs it: an image leaves the batch as soon as it is broken.

        Where batch-norm takes the batch's own statistics, or where the model draws at random, no image leaves.

        Args:
            deterministic: False for a model that draws at random.
        """
        attack = copy.copy(self)
        attack.early_stop = self.batchnorm == "eval" and deterministic
        attack.deterministic = deterministic
        return attack

    def allows(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which examples count, because the threat model holds them or because there is no limit: bool (B,)."""
        return self.threat.holds(x_adv, x) if self.limited else torch.ones(len(x), dtype=torch.bool, device=x.device)

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
        """The attack itself, called with the model frozen, in eval mode and with grad mode on.

        An attack that drops images from its batch calls :func:`attacks.crafting.narrow` on its model too.
        """


class MinimumNorm(Attack):
    """An attack that looks for the smallest change of class, whatever the radius.

    Given a threat model it succeeds where its example lies within the radius in the threat's norm; ``unlimited``,
    wherever the class changes. Called without any threat model it works in the box [0, 1].

    Args:
        threat: radius and norm by which it is judged.
        unlimited: count every change of class; the suite then reports the lengths.
        batchnorm: see :class:`Attack`.
    """

    def __init__(self, threat: Threat | None = None, unlimited: bool = False, batchnorm: BatchNorm = "eval") -> None:
        super().__init__(threat, batchnorm)
        self.limited = not unlimited

    @property
    def exhaustive(self) -> bool:
        return False

    @property
    def bounds(self) -> tuple[float, float]:
        """The box as numbers; [0, 1] without a threat model."""
        return (0.0, 1.0) if self.given_threat is None else self.given_threat.bounds

    def settled(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which examples, known to change the class, are good enough for a suite that only asks whether: bool (B,)."""
        stop = self.early_stop and self.limited and self.given_threat is not None
        return self.threat.holds(x_adv, x) if stop else torch.zeros(len(x), dtype=torch.bool, device=x.device)
