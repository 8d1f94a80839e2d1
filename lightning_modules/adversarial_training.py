"""Adversarial training: the robust teachers, and the baseline that every distilled student is held against."""

from typing import Any

import torch
from torch import Tensor

from attacks import Attack, crafting
from datamodules import Batch
from lightning_modules.base import Logs, Regime
from lightning_modules.losses import cross_entropy, trades


class AdversarialTraining(Regime):
    """``CE(z(x'), y)``, x' crafted on the network as it stands.

    Source: Madry et al. 2018, eq. 2.1 (the AT of papers 002 and 003).

    Per step: student K + 1 forwards, K + 1 backwards.

    Args:
        attack: crafts x'.
    """

    def __init__(self, attack: Attack, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attack = self.bind(attack)

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        x_adv = self.craft(batch)
        return cross_entropy(self.network(x_adv), batch.y), {}


class TRADES(Regime):
    """``CE(z(x), y) + b KL(p(z(x)) || p(z(x')))``, x' crafted to maximise that KL.

    Source: Zhang et al. 2019, eq. 5. The target is not detached: gradients flow through both sides. The authors' code
    starts at x + 0.001 N(0, 1), ours anywhere in the ball; at x itself the KL has no gradient.

    Per step: student K + 3 forwards, K + 2 backwards.

    Args:
        attack: crafts x'; its loss must be ``kl``.
        beta: b, the weight of robustness against accuracy.
    """

    def __init__(self, attack: Attack, beta: float = 6.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attack = self.bind(attack, climbs_kl=True)
        if not getattr(attack, "random_start", False):
            raise ValueError(
                "TRADES climbs a KL divergence, which has no gradient at the image itself: give its attack "
                "random_start: true."
            )
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}.")
        self.beta = beta

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        # What the attack moves away from is judged in the mode in which the attack sees the network.
        with crafting(self.network, self.attack.batchnorm), torch.no_grad():
            target = self.network(batch.x).float().softmax(1)
        x_adv = self.craft(batch, target)
        return trades(self.network(batch.x), self.network(x_adv), batch.y, self.beta), {}
