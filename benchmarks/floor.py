"""What a training step must do at least: multiply-adds, and how long they take at the rate of a matrix product."""

import torch
from torch import nn

from benchmarks.common import matmul_rate
from networks.counts import multiply_adds

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}


def passes(method: str, steps: int, replays: int) -> tuple[int, float]:
    """What a step needs in units of one forward: of the student, and of the teacher.

    A backward to the images costs as much as a forward, one to the weights twice as much. Passes without weight in
    the loss are none that a step must do.

    Args:
        method: one of :data:`benchmarks.released.STEPS`.
        steps: K, the steps of the attack.
        replays: m of Fast-ARD, whose teacher is asked once for m steps.
    """
    crafting, training = 2 * steps, 3
    return {
        "ARD": (crafting + training, 1.0),
        "PGD-AT": (crafting + training, 0.0),
        "TRADES": (1 + crafting + 2 * training, 0.0),  # the attack's target is one more forward
        "Fast-ARD": (training, 1 / replays),
        "KD": (training, 1.0),
    }[method]


class Floor:
    """The least that steps of a student and its teacher can take on a device.

    Args:
        student: the student.
        teacher: its teacher.
        shape: of an image.
        rates: multiply-adds per second of a large matrix product, by precision.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, shape: tuple[int, int, int], rates: dict[str, float]
    ) -> None:
        self.student, self.teacher = multiply_adds(student, shape), multiply_adds(teacher, shape)
        self.rates = rates

    def work(self, method: str, batch: int, steps: int, replays: int) -> float:
        """Multiply-adds of a step on a batch."""
        student, teacher = passes(method, steps, replays)
        return batch * (student * self.student + teacher * self.teacher)

    def seconds(self, method: str, precision: str, batch: int, steps: int, replays: int) -> float:
        """Seconds that they take at the rate of a matrix product of a precision, ``32`` or ``bf16``."""
        return self.work(method, batch, steps, replays) / self.rates[precision]


def rates(device: str) -> dict[str, float]:
    """The device's rates, by precision."""
    return {name: matmul_rate(device, dtype) for name, dtype in PRECISIONS.items()}
