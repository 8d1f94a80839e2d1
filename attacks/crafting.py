"""The contract between an attack and the model that it attacks: nothing of the model changes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNorm = Literal["eval", "train"]


@contextmanager
def crafting(model: nn.Module, batchnorm: BatchNorm = "eval") -> Iterator[None]:
    """Inside, gradients flow to inputs alone; afterwards the model is exactly what it was, an exception included.

    Parameters are frozen (a compiled graph would compute their gradients otherwise), every sub-module is in eval
    mode, and grad mode is on whatever surrounds the call: Lightning's ``test`` runs without. Each sub-module's
    ``training`` flag, each parameter's ``requires_grad`` and all buffers are put back.

    Args:
        model: the attacked model.
        batchnorm: ``train`` lets batch-norm layers normalise by the batch's own statistics, as the authors' code of
            ARD does; their running averages are put back too.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moving = [module for module, _ in modes if batchnorm == "train" and isinstance(module, _BatchNorm)]
    # Batch-norm in eval mode moves nothing, which spares a network of many layers as many copies.
    buffers = [
        (buffer, buffer.clone())
        for module, _ in modes
        if batchnorm == "train" or not isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]
    try:
        for module, _ in modes:
            module.training = False  # not .eval(), which would recurse once per sub-module
        for module in moving:
            module.training = True
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


class RowWise(nn.Module, ABC):
    """A model that knows which images it is given, because something of it belongs to each: a count, a head, a draw."""

    @abstractmethod
    def narrowed(self, kept: Tensor) -> nn.Module:
        """The model for a part of the images, chosen by a mask or by positions."""


def narrow(model: nn.Module, kept: Tensor) -> nn.Module:
    """The model as it must be called with ``x[kept]`` from now on; most models need no telling.

    An attack that drops images from its batch does so with its images, its labels and its model in one breath.
    """
    return model.narrowed(kept) if isinstance(model, RowWise) else model


class Tempered(RowWise):
    """A model whose logits are divided by a temperature: ``z(x) / T``."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"A temperature must be positive and finite, got {temperature}.")
        self.model = model
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / self.temperature

    def narrowed(self, kept: Tensor) -> nn.Module:
        return Tempered(narrow(self.model, kept), self.temperature)


def tempered(model: nn.Module, temperature: float) -> nn.Module:
    """The model at a temperature; itself at T = 1."""
    return model if temperature == 1 else Tempered(model, temperature)


def upcast(logits: Tensor) -> Tensor:
    """Logits in float32 at least: 16 bits hide small gains."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def ascend(model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One forward and one backward pass for an objective of the logits.

    The images' values are summed, not averaged, so an image's gradient does not depend on the batch around it.

    Returns:
        The logits in float32 at least, (B, C); the objective of every image, (B,); its gradient, shaped like ``x``.
    """
    x = x.detach().requires_grad_()
    logits = upcast(model(x))
    if not logits.requires_grad:
        raise ValueError("The model's logits have no gradient in its images: attack it with attacks.Square or Noise.")
    values = objective(logits)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return logits.detach(), values.detach(), gradient
