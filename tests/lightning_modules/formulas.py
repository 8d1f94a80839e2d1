"""The papers' formulas on logits, in float64 and by plain arithmetic, and how a regime's step is held against them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from regime_helpers import FACTS, STEPS, THREAT
from torch import Tensor, nn

from attacks import PGD, Draws
from datamodules import Batch
from lightning_modules import Regime


def log_p(z: Tensor, t: float = 1.0) -> Tensor:
    z = z / t
    z = z - z.amax(1, keepdim=True).detach()
    return z - z.exp().sum(1, keepdim=True).log()


def ce(z: Tensor, y: Tensor, t: float = 1.0) -> Tensor:
    return -sum(log_p(z, t)[i, int(c)] for i, c in enumerate(y)) / len(y)


def soft_ce(q: Tensor, z: Tensor, t: float = 1.0) -> Tensor:
    """Cross-entropy with a distribution (B, C)."""
    return -(q * log_p(z, t)).sum() / len(q)


def kl_from(q: Tensor, z: Tensor, t: float = 1.0) -> Tensor:
    """``KL(q || p(z, t))`` of a distribution (B, C), where 0 log 0 = 0."""
    return (torch.where(q > 0, q * q.log(), 0) - q * log_p(z, t)).sum() / len(q)


def kl(target: Tensor, student: Tensor, t: float = 1.0) -> Tensor:
    return (log_p(target, t).exp() * (log_p(target, t) - log_p(student, t))).sum() / len(target)


def kd(teacher: Tensor, student: Tensor, clean: Tensor, y: Tensor, alpha: float, t: float, ce_t: float = 1) -> Tensor:
    return alpha * t * t * kl(teacher, student, t) + (1 - alpha) * ce(clean, y, ce_t)


def smooth(y: Tensor, own: float, classes: int = FACTS.classes) -> Tensor:
    """``own`` on the label and the rest spread evenly over the other classes, one entry after another."""
    rows = [[own if c == int(label) else (1 - own) / (classes - 1) for c in range(classes)] for label in y]
    return torch.tensor(rows, dtype=torch.float64)


class Double:
    """A network of the same weights in float64, and the gradients of a loss of its logits."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).double()

    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x.double())

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        parameters = dict(self.network.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, grads, strict=True))


class Divided(nn.Module):
    """``z / t``, written here so as not to test a thing by itself."""

    def __init__(self, network: nn.Module, t: float) -> None:
        super().__init__()
        self.network, self.t = network, t

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) / self.t


def check(regime: Regime, batch: Batch, reference: Callable[[Double], Tensor]) -> None:
    """The step's loss, and its gradients to the weights, are those of the reference."""
    double = Double(regime.network)
    expected = reference(double)
    loss, _ = regime.step(batch, 0)
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    regime.network.zero_grad()
    loss.backward()
    for key, gradient in double.gradients(expected).items():
        found = dict(regime.network.named_parameters())[key].grad
        assert found is not None
        torch.testing.assert_close(found.double(), gradient, rtol=1e-3, atol=1e-5)


def crafted(regime: Regime, batch: Batch, t: float = 1.0, y: Tensor | None = None, **kwargs: Any) -> Tensor:
    attack = PGD(THREAT.within(FACTS.box), **{"steps": STEPS} | kwargs)
    draws = regime.draws(batch)
    assert isinstance(draws, Draws)
    return attack(Divided(regime.network, t), batch.x, batch.y if y is None else y, draws)


def sharpen(regime: Regime, std: float = 1.0) -> Regime:
    """Makes an untrained student sure of itself: what its examples are crafted for then shows in its loss."""
    nn.init.normal_(regime.network.fc.weight, std=std)
    return regime


@contextmanager
def shown(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of a module's forwards inside, in order."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach().clone()))
    try:
        yield inputs
    finally:
        handle.remove()
