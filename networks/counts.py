"""What a network costs: parameters and multiply-adds."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of the convolutions and linear layers for one image; biases and everything else count nothing.

    Args:
        model: maps images to logits; only a copy of it runs, in eval, on its own device.
        shape: (channels, height, width) of the image.
    """
    twin = deepcopy(model).eval()
    image = next(twin.parameters(), torch.empty(0)).new_zeros(1, *shape)  # a scripted teacher may have none
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(image)
    return counter.get_total_flops() // 2  # it counts a multiply-add as two operations
