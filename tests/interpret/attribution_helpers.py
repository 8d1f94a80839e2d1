"""Small networks of every kind, the same attributions computed in another way, and a watch over what may not change."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from networks import MLP, DefensiveCNN, Facts, MobileNetV2, Network, ResNet18, TrafficSignCNN, WideResNet

CONVOLUTIONAL: dict[str, Callable[[Facts], Network]] = {
    "DefensiveCNN": lambda facts: DefensiveCNN(facts, "mnist", reduced=True),
    "WideResNet": lambda facts: WideResNet(facts, 10, 1, dropout=0.3),
    "ResNet18": ResNet18,
    "MobileNetV2": MobileNetV2,
}
NETWORKS = {"MLP": lambda facts: MLP(facts, [24, 16], dropout=0.2), **CONVOLUTIONAL}
# The one that asks for large images is tried less often.
LARGE = {"TrafficSignCNN": lambda facts: TrafficSignCNN(facts, reduced=True)}
CLASSES = 5


def network(name: str, dtype: torch.dtype = torch.float32, size: int = 8, channels: int = 2) -> Network:
    """A network whose batch-norms have seen something, in eval mode."""
    torch.manual_seed(0)
    facts = Facts(CLASSES, channels, size, [0.4] * channels, [0.3] * channels)
    model = {**NETWORKS, **LARGE}[name](facts)
    with torch.no_grad():
        for _ in range(30):
            model(images(16, size, channels))
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0, 0.1)
    return model.to(dtype).eval()


def images(count: int = 3, size: int = 8, channels: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images of the unit box."""
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64).to(dtype)


def targets(count: int = 3) -> Tensor:
    """A class for each."""
    return torch.arange(count) % CLASSES


class Linear(nn.Module):
    """Logits ``W x + b``."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(CLASSES, *shape, generator=generator).to(dtype))
        self.bias = nn.Parameter(torch.randn(CLASSES, generator=generator).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.flatten(1).T + self.bias


class Small(nn.Module):
    """Convolution, a rectification as the test wants it, convolution, ReLU, mean, logits; its last stage is ``end``."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.end = nn.Identity()
        self.head = nn.Linear(4, CLASSES)
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectify(self.first(x))
        return self.head(self.end(self.relu(self.second(x))).mean((2, 3)))

    def stages(self) -> dict[str, nn.Module]:
        return {"end": self.end}


class Counting(nn.Module):
    """A network that counts its passes and may fail at one of its forwards."""

    def __init__(self, model: Network, fail_at: int | None = None) -> None:
        super().__init__()
        self.model, self.fail_at = model, fail_at
        self.forwards = self.backwards = 0
        self.stages = model.stages

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        logits = self.model(x)
        if self.forwards == self.fail_at:
            raise RuntimeError("out of memory")
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient of each image's logit, image by image."""
    rows = []
    for image, label in zip(x, target, strict=True):
        image = image[None].clone().requires_grad_()
        rows.append(torch.autograd.grad(model(image)[0, label], image)[0])
    return torch.cat(rows)


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x > 0) & (gradients[0] > 0), gradients[0], 0)


class Guided(nn.Module):
    """A ReLU whose derivative is the guided one."""

    def forward(self, x: Tensor) -> Tensor:
        return _GuidedReLU.apply(x)


def guided_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient of a copy whose ReLUs are guided ones."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, Guided())
    return gradient(model, x, target)


def numpy_cam(model: nn.Module, stage: nn.Module, x: Tensor, target: Tensor) -> np.ndarray:
    """Grad-CAM by NumPy from what hooks see, (B, 1, H, W)."""
    seen: dict[str, np.ndarray] = {}

    def forward(module: nn.Module, args: Any, output: Tensor) -> None:
        seen["map"] = output.detach().numpy().astype(float)
        output.register_hook(lambda gradient: seen.__setitem__("gradient", gradient.numpy().astype(float)))

    handle = stage.register_forward_hook(forward)
    model(x.clone().requires_grad_())[torch.arange(len(x)), target].sum().backward()
    handle.remove()
    weights = seen["gradient"].mean((2, 3))
    cam = np.maximum(np.einsum("bk,bkij->bij", weights, seen["map"]), 0)
    rows, columns = (_bilinear(old, new) for old, new in zip(cam.shape[1:], x.shape[2:], strict=True))
    return (rows @ cam @ columns.T)[:, None]


def _bilinear(old: int, new: int) -> np.ndarray:
    """The matrix that interpolates a row of ``old`` pixels at the centres of ``new`` ones, clamped at the ends."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fails where a value, mode, ``requires_grad``, ``.grad`` or hook of a model changed inside, bit for bit."""

    def state() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, module in model.named_modules():
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            found[name] = (module.training, *([*each.values()] for each in hooks))
        for name, parameter in model.named_parameters():
            found[f"{name}, parameter"] = (parameter.requires_grad, id(parameter), id(parameter.grad))
        for name, buffer in model.named_buffers():
            found[f"{name}, buffer"] = (id(buffer), buffer.data_ptr())
        return found

    def values() -> list[Tensor]:
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return [each.detach().clone() for each in (*model.parameters(), *model.buffers(), *grads)]

    state_before, values_before = state(), values()
    try:
        yield
    finally:
        assert state() == state_before
        assert all(torch.equal(*pair) for pair in zip(values(), values_before, strict=True))
