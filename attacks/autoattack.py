"""AutoAttack: four attacks, each on what the others left standing."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import Attack
from attacks.crafting import BatchNorm, narrow
from attacks.draws import Draws
from attacks.fab import FAB
from attacks.square import Square
from attacks.threat import Radius, Threat


class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020): APGD-CE, targeted APGD-DLR, FAB-T and Square, in this order.

    An upper bound on robust accuracy, as any attack gives: what it leaves standing may still be broken by another.

    Args:
        threat: norm, radius and box.
        attacks: other attacks in their stead, in the order in which they run; None for the standard four.
        batchnorm: see :class:`attacks.base.Attack`.
    """

    def __init__(
        self,
        threat: Threat | None = None,
        attacks: Sequence[Attack] | None = None,
        batchnorm: BatchNorm = "eval",
    ) -> None:
        super().__init__(threat, batchnorm)
        if attacks is not None and not attacks:
            raise ValueError("A custom AutoAttack needs at least one attack.")
        if unlimited := [attack.name for attack in attacks or () if not attack.limited]:
            raise ValueError(
                f"{', '.join(unlimited)} counts changes of any length; AutoAttack's parts have the radius."
            )
        self.custom = attacks is not None
        standard = (
            APGD(batchnorm=batchnorm),
            APGD(loss="dlr", targets=9, batchnorm=batchnorm),
            FAB(targets=9, batchnorm=batchnorm),
            Square(batchnorm=batchnorm),
        )
        self.parts: Sequence[Attack] = standard if attacks is None else tuple(attacks)
        if threat is not None:
            self.parts = [part.under(threat) for part in self.parts]

    @property
    def name(self) -> str:
        return f"AutoAttack ({', '.join(part.name for part in self.parts)})" if self.custom else "AutoAttack"

    @property
    def exhaustive(self) -> bool:
        return False

    @property
    def budget(self) -> int | None:
        budgets = [part.budget for part in self.parts]
        return None if None in budgets else sum(budget + 1 for budget in budgets if budget is not None)

    def under(self, threat: Threat) -> Self:
        attack = super().under(threat)
        attack.parts = [part.under(attack.threat) for part in self.parts]
        return attack

    def resized(self, eps: Radius) -> Self:
        attack = super().resized(eps)
        attack.parts = [part.resized(eps) for part in self.parts]
        return attack

    def at(self, temperature: float) -> Self:
        attack = copy.copy(self)
        attack.parts = [part.at(temperature) for part in self.parts]
        return attack

    def evaluating(self, deterministic: bool = True) -> Self:
        attack = super().evaluating(deterministic)
        attack.parts = [part.evaluating(deterministic) for part in self.parts]
        return attack

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        result, stands = x.clone(), torch.arange(len(x), device=x.device)
        for number, part in enumerate(self.parts):
            left = narrow(model, stands)
            # By calling it: each part has a mode of its own for batch-norm.
            tried = part(left, x[stands], y[stands], draws.stream(number)[stands])
            with torch.no_grad():
                broken = (left(tried).argmax(1) != y[stands]) & part.allows(tried, x[stands])
            result[stands[broken]] = tried[broken]
            if self.deterministic:
                stands = stands[~broken]
            if not len(stands):
                break
        return result
