"""Models whose answers are known in closed form, and a small real network in which everything can go wrong."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import attacks
from attacks import APGD, FGSM, PGD, Attack, Draws, MinimumNorm, Threat

# Every attack that the package exports: one that is added later is held to the same contract.
ATTACKS = [
    found
    for name in sorted(attacks.__all__)
    if isinstance(found := getattr(attacks, name), type) and issubclass(found, Attack) and not inspect.isabstract(found)
]
# Those that stay inside a ball.
FIXED_RADIUS = [attack for attack in ATTACKS if not issubclass(attack, MinimumNorm)]

# What a test spends at most, where an attack's constructor has such a parameter; and what lets so few steps arrive.
BUDGET = {"steps": 10, "search_steps": 2, "queries": 30, "samples": 3, "temperature": 5.0}
BUDGET |= {"gamma": 1.0, "lr": 0.2, "initial_c": 10.0}


class TwoClasses(nn.Module):
    """Logits (0, scale (w . x + b)): class 1 where the product is positive."""

    def __init__(self, weight: Tensor, bias: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = nn.Parameter(weight), bias, scale

    def forward(self, x: Tensor) -> Tensor:
        z = self.scale * (x.flatten(1) @ self.weight + self.bias)
        return torch.stack([torch.zeros_like(z), z], 1)


class Linear(nn.Module):
    """Logits ``W x + b`` of as many classes as there are rows."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


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


def classifier(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, classes: int = 4) -> nn.Module:
    """A fixed non-linear network on inputs of any shape."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(count, 9), nn.Tanh(), nn.Linear(9, classes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 1.5 / parameter.shape[-1] ** 0.5, generator=generator)
    return model


def two_classes(
    shape: tuple[int, ...] = (3, 4, 4), scale: float = 1.0, size: int = 6
) -> tuple[TwoClasses, Tensor, Tensor]:
    """A two-class linear model in float64, images away from the box's edges, and the class of each."""
    generator = torch.Generator().manual_seed(3)
    count = torch.Size(shape).numel()
    model = TwoClasses(torch.randn(count, generator=generator, dtype=torch.float64), scale=scale)
    x = 0.3 + 0.4 * torch.rand(size, *shape, generator=generator, dtype=torch.float64)
    model.bias = -float((x.flatten(1) @ model.weight.detach()).median()) + 0.01
    return model, x, model(x).argmax(1)


def build(
    attack: type[Attack], threat: Threat | None, batchnorm: str = "eval", source: nn.Module | None = None
) -> Attack:
    """An attack of this class that costs little.

    Args:
        attack: a class of ``ATTACKS``; one that is made of others gets some.
        threat: its threat model.
        batchnorm: its batch-norm mode, or that of the attacks that it is made of.
        source: what an attack that crafts on another model crafts on. With the attacked model itself it must do all
            that other attacks do.
    """
    takes = inspect.signature(attack).parameters
    given: dict[str, Any] = {name: value for name, value in BUDGET.items() if name in takes}
    if "attack" in takes:
        given["attack"] = PGD(threat, steps=3, restarts=2, batchnorm=batchnorm)
    if "attacks" in takes:
        several = {"batchnorm": batchnorm, "steps": 3}
        given["attacks"] = [FGSM(batchnorm=batchnorm), APGD(**several), APGD(loss="margin", targets=2, **several)]
    if "source" in takes:
        given["source"] = source
    given |= {name: value for name, value in {"threat": threat, "batchnorm": batchnorm}.items() if name in takes}
    return attack(**given)


def broken(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are classified otherwise than they are labelled: bool (B,)."""
    with torch.no_grad():
        return model(x).argmax(1) != y


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
