"""Attacks made of another attack: at a temperature, in expectation over a model's noise, from another model."""

import copy
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import RowWise, crafting, narrow, tempered
from attacks.draws import Draws
from attacks.threat import Radius, Threat
from networks.checkpoint import load_network


class Wrapper(Attack):
    """An attack that runs another, on a changed model.

    Args:
        attack: the attack to run; threat model and batch-norm mode are its own.
    """

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack.given_threat, attack.batchnorm)
        self.attack = attack
        self.limited = attack.limited

    @property
    def exhaustive(self) -> bool:
        return self.attack.exhaustive

    @property
    def budget(self) -> int | None:
        return self.attack.budget

    def under(self, threat: Threat) -> Self:
        wrapper = super().under(threat)
        wrapper.attack = self.attack.under(threat)
        return wrapper

    def resized(self, eps: Radius) -> Self:
        wrapper = super().resized(eps)
        wrapper.attack = self.attack.resized(eps)
        return wrapper

    def at(self, temperature: float) -> Self:
        wrapper = copy.copy(self)
        wrapper.attack = self.attack.at(temperature)
        return wrapper

    def evaluating(self, deterministic: bool = True) -> Self:
        wrapper = super().evaluating(deterministic)
        wrapper.attack = self.attack.evaluating(deterministic)
        return wrapper


class Strong(Wrapper):
    """Any attack run on ``z / T``: what Carlini & Wagner (2016) showed against defensive distillation.

    A network trained at a high temperature and used at T = 1 saturates its softmax, so that cross-entropy has no
    gradient left in float32; dividing the logits by T brings it back. Success is judged on the original model.

    Args:
        attack: the attack to strengthen.
        temperature: T; None stands for the temperature that the attacked model was trained at.
    """

    def __init__(self, attack: Attack, temperature: float | None = None) -> None:
        super().__init__(attack)
        if temperature is not None and not 0 < temperature < float("inf"):
            raise ValueError(f"A temperature must be positive and finite, got {temperature}.")
        self.temperature = temperature

    @property
    def name(self) -> str:
        return f"{self.attack.name} strong" + ("" if self.temperature is None else f" T={self.temperature:g}")

    def at(self, temperature: float) -> Self:
        strong = super().at(temperature)
        strong.temperature = temperature if self.temperature is None else self.temperature
        return strong

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        if self.temperature is None:
            raise ValueError(f"{self.name} needs a temperature: give temperature=T, the one the model was trained at.")
        # Not by calling it: the model is frozen by now, in the mode that the attack asked for.
        return self.attack.perturb(tempered(model, self.temperature), x, y, draws)


class Expected(RowWise):
    """A randomised model's logits, averaged over ``samples`` passes in one."""

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.model = model
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device).repeat(self.samples)
        logits = narrow(self.model, rows)(x[rows])
        return logits.unflatten(0, (self.samples, len(x))).mean(0)

    def narrowed(self, kept: Tensor) -> nn.Module:
        return Expected(narrow(self.model, kept), self.samples)


class EOT(Wrapper):
    """Expectation over transformation (Athalye et al. 2018): the attack climbs ``E[z(x)]``, by ``samples`` passes.

    For models that draw at random when they are used; a single pass gives such a model's gradient with its noise.

    Args:
        attack: the attack to run.
        samples: passes averaged in every step (AutoAttack's version for randomised models takes 20).
    """

    def __init__(self, attack: Attack, samples: int = 20) -> None:
        super().__init__(attack)
        if samples < 1:
            raise ValueError(f"EOT needs at least 1 sample, got {samples}.")
        self.samples = samples

    @property
    def name(self) -> str:
        return f"{self.attack.name} EOT-{self.samples}"

    @property
    def budget(self) -> int | None:
        return None if self.attack.budget is None else self.attack.budget * self.samples

    def evaluating(self, deterministic: bool = True) -> Self:
        return super().evaluating(False)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return self.attack.perturb(Expected(model, self.samples), x, y, draws)


class Transfer(Wrapper):
    """Examples crafted on another model, which need no gradient of the attacked one (Papernot et al. 2016).

    The attack makes all its steps: what breaks the source need not break the target yet.

    Args:
        attack: the attack to run on the source.
        source: a checkpoint of a run of ours, or a module that maps the same images to the same classes.
        label: what tables call the source.
    """

    def __init__(self, attack: Attack, source: str | Path | nn.Module, label: str = "another model") -> None:
        super().__init__(attack)
        self.label = label
        self.source = source if isinstance(source, nn.Module) else load_network(str(source)).network

    @property
    def name(self) -> str:
        return f"{self.attack.name} from {self.label}"

    @property
    def budget(self) -> int | None:
        return None

    def evaluating(self, deterministic: bool = True) -> Self:
        return self

    def require(self, x: Tensor, classes: int) -> None:
        """Raises ValueError where the source does not tell these images apart into as many classes."""
        source = self.source.to(x.device)
        with crafting(source), torch.no_grad():
            found = source(x).shape[1]
        if found != classes:
            raise ValueError(f"{self.label} has {found} classes, the attacked model {classes}: give another source.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        source = self.source.to(x.device)
        with crafting(source, self.batchnorm):
            return self.attack.perturb(source, x, y, draws)
