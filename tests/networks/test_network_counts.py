"""The counters, on layers whose counts are known, and what they leave behind."""

import pytest
import torch
from torch import nn

from networks.counts import multiply_adds, parameters


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6), (6, 8, 8), 4 * 4 * 6 * 9),
        (nn.Conv2d(4, 8, (1, 3), groups=2, bias=False), (4, 5, 5), 5 * 3 * 8 * 2 * 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), 60),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (3, 4, 4), 0),
    ],
)
def test_multiply_adds_of_layers(layer, shape, expected):
    assert multiply_adds(layer, shape) == expected


def test_counting_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2))
    model(torch.rand(2, 3, 6, 6))
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    multiply_adds(model, (3, 6, 6))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_counts_under_any_mode_and_dtype(mode, dtype):
    layer = nn.Conv2d(3, 8, 3).to(dtype)
    with mode():
        assert multiply_adds(layer, (3, 5, 5)) == 9 * 8 * 27


def test_parameters_include_frozen_ones():
    assert parameters(nn.Linear(3, 4).requires_grad_(False)) == 16
