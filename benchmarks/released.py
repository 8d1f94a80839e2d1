"""A training step as the code released with the methods computes it, written anew from the papers, as plain as theirs.

What all have in common is what is measured: float32, images and weights in the order (B, C, H, W), per-sample
transforms in a loader, no stop before a pass that has no weight in the loss. Beside a GPU the loader has workers, whose
batches are ready when they are asked for. Of Fast-ARD no code was released; its step
follows Algorithm 2 of the paper, and the code of free adversarial training in that one backward serves weights and d.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.pipeline import PerSample

EPS, STEP = 8 / 255, 2 / 255
ARD_T, KD_T, KD_ALPHA, BETA = 30.0, 4.0, 0.9, 6.0


@dataclass
class Released:
    """A student in training, its teacher, and what a step needs.

    Attributes:
        student: the network, in train mode.
        teacher: the frozen teacher, in eval mode.
        loader: batches of images (B, C, H, W) in [0, 1] and labels (B,), without end.
        device: where the networks are.
        steps: K, the steps of the attack.
        replays: m, how often Fast-ARD sees a batch.
        delta: d of Fast-ARD.
    """

    student: nn.Module
    teacher: nn.Module
    loader: Iterator[list[Tensor]]
    device: str
    steps: int
    replays: int
    delta: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        self.student.train()
        self.teacher.eval().requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next images and labels."""
        x, y = next(self.loader)
        return x.to(self.device), y.to(self.device)

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def endless(images: Tensor, batch: int, workers: int = 0) -> Iterator[list[Tensor]]:
    """Torchvision's per-sample crops and flips in a loader, epoch after epoch.

    Args:
        images: uint8 (N, 3, 32, 32).
        batch: images in a batch.
        workers: processes that make the batches; none where it is the processor's time of this one that counts.
    """
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        PerSample(images, True),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def pgd(student: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """PGD on the cross-entropy with the student in train mode, from a start that may lie outside the box."""
    x_adv = x + torch.empty_like(x).uniform_(-EPS, EPS)
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(student(x_adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + STEP * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv


def divergence(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """``t^2 KL(p(z_T, t) || p(z_S, t))``, averaged over the classes too, as the code released with ARD has it."""
    return t * t * F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="sum") / student.numel()


def ard(on: Released) -> None:
    """ARD at a = 1: the clean images pass the student although their loss has no weight."""
    x, y = on.batch()
    adversarial = on.student(pgd(on.student, x, y, on.steps))
    clean = on.student(x)
    loss = divergence(adversarial, on.teacher(x), ARD_T) + 0.0 * F.cross_entropy(clean, y)
    on.update(loss)


def pgd_at(on: Released) -> None:
    """Adversarial training."""
    x, y = on.batch()
    on.update(F.cross_entropy(on.student(pgd(on.student, x, y, on.steps)), y))


def trades(on: Released) -> None:
    """TRADES: the student is in eval mode while crafting, and the clean images pass it anew at every step."""
    x, y = on.batch()
    kl = nn.KLDivLoss(reduction="sum")
    on.student.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(on.steps):
        x_adv.requires_grad_()
        loss = kl(on.student(x_adv).log_softmax(1), on.student(x).softmax(1))
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + STEP * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    on.student.train()
    natural = F.cross_entropy(on.student(x), y)
    robust = kl(on.student(x_adv).log_softmax(1), on.student(x).softmax(1)) / len(x)
    on.update(natural + BETA * robust)


def fast_ard(on: Released) -> None:
    """Fast-ARD at a = 1: m replays of a batch, each with the teacher's and the clean images' pass of Algorithm 2."""
    x, y = on.batch()
    for _ in range(on.replays):
        delta = (torch.zeros_like(x) + on.delta).requires_grad_()
        clean = on.student(x)
        loss = divergence(on.student((x + delta).clamp(0, 1)), on.teacher(x), ARD_T)
        on.update(loss + 0.0 * F.cross_entropy(clean, y))
        assert delta.grad is not None
        on.delta = (delta.detach() + EPS * delta.grad.sign()).clamp(-EPS, EPS)


def kd(on: Released) -> None:
    """Hinton's distillation on clean images."""
    x, y = on.batch()
    student = on.student(x)
    on.update(KD_ALPHA * divergence(student, on.teacher(x), KD_T) + (1 - KD_ALPHA) * F.cross_entropy(student, y))


STEPS: dict[str, Callable[[Released], None]] = {
    "ARD": ard,
    "PGD-AT": pgd_at,
    "TRADES": trades,
    "Fast-ARD": fast_ard,
    "KD": kd,
}
