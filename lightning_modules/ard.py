"""Adversarially robust distillation."""

from typing import Any

from torch import Tensor

from attacks import Attack
from datamodules import Batch
from lightning_modules.base import Logs
from lightning_modules.distiller import Distiller, Tempering
from lightning_modules.losses import distillation


class ARD(Distiller):
    """``a t^2 KL(p(z_T(x), t) || p(z_S(x'), t)) + (1 - a) CE(z_S(x), y)``, x' crafted on the student.

    Source: Goldblum et al. 2020 (002), eq. 1 and Algorithm 1. The equation tempers the student in the cross-entropy
    and in the attack, the algorithm and the released code do not (``ce_temperature``, ``attack_temperature``). The
    code also averages the KL over classes (``kl_reduction: mean``) and crafts with batch-norm in train mode (the
    attack's ``batchnorm: train``). With K steps per attack, the student does K + 1 forwards and backwards per step at
    a = 1 and one more forward below; the teacher one forward.

    Args:
        attack: crafts x' by maximising the student's cross-entropy.
        attack_temperature: 1 as in the algorithm, or t as in the equation: the student's temperature in the attack.
    """

    def __init__(self, attack: Attack, attack_temperature: Tempering = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attack = self.bind(attack)
        self.attack_temperature = self.tempering(attack_temperature)

    def step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Logs]:
        teacher = student = clean = None
        if self.alpha > 0:
            x_adv = self.craft(batch, temperature=self.attack_temperature)
            teacher, student = self.teacher(batch.x), self.network(x_adv)
        if self.alpha < 1:
            clean = self.network(batch.x)
        loss = distillation(
            teacher, student, clean, batch.y, self.alpha, self.temperature, self.ce_temperature, self.kl_reduction
        )
        return loss, {}
