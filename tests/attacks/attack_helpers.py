"""Models whose answers are known in closed form, and a small real network in which everything can go wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import attacks
from attacks import Attack, Draws, Strong, Threat

# Every attack that the package exports: one that is added later is held to the same contract.
ATTACKS = [
    found
    for name in sorted(attacks.__all__)
    if isinstance(found := getattr(attacks, name), type) and issubclass(found, Attack) and found is not Attack
]


class TwoClasses(nn.Module):
    """Logits (0, scale (w . x + b)): class 1 where the product is positive."""

    def __init__(self, weight: Tensor, bias: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = nn.Parameter(weight), bias, scale

    def forward(self, x: Tensor) -> Tensor:
        z = self.scale * (x.flatten(1) @ self.weight + self.bias)
        return torch.stack([torch.zeros_like(z), z], 1)


class Network(nn.Module):
    """Convolution, a batch-norm that trains, one that is frozen in eval mode, dropout, and a frozen layer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.frozen_bn = nn.BatchNorm2d(6)
        self.body = nn.Sequential(nn.Tanh(), nn.Dropout(0.5), nn.Conv2d(6, 8, 3, stride=2), nn.Tanh())
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.frozen_bn(self.bn(self.conv(x)))).mean((2, 3)))


def build(attack: type[Attack], threat: Threat, batchnorm: str = "eval") -> Attack:
    """An attack of this class; Strong needs another to strengthen."""
    if attack is Strong:
        return Strong(attacks.PGD(threat, steps=3, restarts=2, batchnorm=batchnorm), 5.0)
    return attack(threat, batchnorm=batchnorm)


def draws(count: int, seed: int = 0) -> Draws:
    """Fresh streams of the images 0, 1, ...; a stream is spent by using it."""
    return Draws(torch.arange(count), seed)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fails where parameters, buffers, modes, ``requires_grad`` or ``.grad`` of a model changed inside, bit for bit."""

    def state() -> dict[str, object]:
        return {
            **{f"mode of {name}": module.training for name, module in model.named_modules()},
            **{f"requires_grad of {name}": p.requires_grad for name, p in model.named_parameters()},
            **{f"place of {name}": id(p) for name, p in model.named_parameters()},
            **{f"place of {name}": (id(b), b.data_ptr()) for name, b in model.named_buffers()},
            **{f"place of the gradient of {name}": id(p.grad) for name, p in model.named_parameters()},
        }

    def values() -> dict[str, Tensor]:
        found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        grads = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {name: tensor.detach().clone() for name, tensor in {**found, **grads}.items()}

    state_before, values_before = state(), values()
    try:
        yield
    finally:
        assert state() == state_before
        values_after = values()
        assert values_after.keys() == values_before.keys()
        for name, before in values_before.items():
            assert torch.equal(values_after[name], before), f"{name} changed"


class Counting(nn.Module):
    """A model that counts its calls, remembers how many images each had, and may fail at one of them."""

    def __init__(self, model: nn.Module, fail_at: int | None = None) -> None:
        super().__init__()
        self.model, self.fail_at, self.sizes = model, fail_at, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits = self.model(x)
        if len(self.sizes) == self.fail_at:  # after the batch-norms have run
            raise RuntimeError("out of memory")
        return logits


class Moving(Attack):
    """Moves every image by a function of it, and remembers how many it was given."""

    def __init__(self, name: str, move: Callable[[Tensor], Tensor], threat: Threat | None = None) -> None:
        super().__init__(threat)
        self._name, self.move, self.sizes = name, move, []

    @property
    def name(self) -> str:
        return self._name

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        self.sizes.append(len(x))
        return self.move(x)
