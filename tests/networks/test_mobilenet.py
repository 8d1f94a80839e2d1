"""MobileNetV2's depthwise convolutions with a stride, which leave autocast on a CPU and are ordinary ones otherwise."""

import pickle
from copy import deepcopy

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from attacks.prepare import Prepared, prepared
from networks import Facts, MobileNetV2
from networks.counts import multiply_adds
from networks.mobilenet import FullPrecision

FACTS = Facts(classes=7, channels=3, size=16, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def network() -> MobileNetV2:
    network = MobileNetV2(FACTS)
    network(torch.rand(16, *FACTS.shape))  # batch-norm that has seen something
    return network.eval()


def strided(network: nn.Module) -> list[nn.Conv2d]:
    """The depthwise convolutions with a stride, whatever their class."""
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return [conv for conv in convs if conv.groups > 1 and conv.stride != (1, 1)]


def ordinary(network: nn.Module) -> nn.Module:
    """The same network of torch's convolutions alone."""
    twin = deepcopy(network)
    for conv in strided(twin):
        conv.__class__ = nn.Conv2d
    return twin


def gradient(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    logits = model(x)
    (found,) = torch.autograd.grad(logits.float().square().sum(), x)
    return logits.detach(), found


def test_three_convolutions_leave_autocast_and_no_others_do(network) -> None:
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, x, out, name=name: seen.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(2, *FACTS.shape))
    full = [name for name, dtype in seen.items() if dtype == torch.float32]
    assert full == ["stage2.0.residual.3", "stage3.0.residual.3", "stage4.0.residual.3"]
    assert {dtype for name, dtype in seen.items() if name not in full} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_they_are_what_float32_computes_of_their_input(dtype) -> None:
    conv = FullPrecision(6, 6, 3, 2, padding=1, groups=6, bias=False)
    x = torch.rand(2, 6, 8, 8, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
    slopes = torch.autograd.grad(out.square().sum(), [x, conv.weight])
    # each channel by itself, in double precision
    wide = x.detach().double().requires_grad_()
    weight = conv.weight.detach().double().requires_grad_()
    expected = torch.cat([F.conv2d(wide[:, i : i + 1], weight[i : i + 1], stride=2, padding=1) for i in range(6)], 1)
    wanted = torch.autograd.grad(expected.square().sum(), [wide, weight])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    for slope, want, bits in zip(slopes, wanted, (dtype, torch.float32), strict=True):
        assert slope.dtype == bits
        torch.testing.assert_close(slope.double(), want, rtol=1e-2 if bits == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_autocast_nothing_is_different(network, dtype) -> None:
    network, x = network.to(dtype), torch.rand(2, *FACTS.shape, dtype=dtype)
    for mine, other in zip(gradient(network, x), gradient(ordinary(network), x), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, other)


def test_on_other_devices_autocast_is_left_alone(network, monkeypatch) -> None:
    network, x = network.to("meta"), torch.rand(2, *FACTS.shape, device="meta")
    monkeypatch.setattr(torch, "autocast", None)
    assert network(x).shape == (2, 7)


def test_they_are_folded_as_others_are_and_leave_autocast_then_too(network) -> None:
    x = torch.rand(4, *FACTS.shape)
    copy, wanted = Prepared(network, x), Prepared(ordinary(network), x)
    assert copy.folded == wanted.folded
    assert len(copy.folded) == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert [type(conv) for conv in strided(copy.network)] == [FullPrecision] * 3
    for mine, other in zip(gradient(copy.network, x), gradient(wanted.network, x), strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(copy.network(x), network(x), rtol=1e-3, atol=1e-5)
    seen = []
    for conv in strided(copy.network):
        conv.register_forward_hook(lambda module, x, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        copy.network(x)
    assert seen == [torch.float32] * 3


def test_bfloat16_with_them_is_near_float32(network) -> None:
    x = torch.rand(8, *FACTS.shape)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = [model(x) for model in (network, prepared(network, x))]
    assert all(logits.dtype == torch.bfloat16 for logits in found)
    # Rounding to 8 bits in each of some 50 layers, as errors that are independent add up.
    assert all((logits - exact).norm() < 2**-8 * 50**0.5 * exact.norm() for logits in found)


def test_state_dicts_copies_pickles_and_counts_are_the_ordinary_networks(network) -> None:
    twin, x = ordinary(network), torch.rand(2, *FACTS.shape)
    assert list(network.state_dict()) == list(twin.state_dict())
    assert multiply_adds(network, FACTS.shape) == multiply_adds(twin, FACTS.shape)
    for same in (deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert [type(conv) for conv in strided(same)] == [FullPrecision] * 3
        assert torch.equal(same(x), network(x))
        assert len(Prepared(same, x).folded) == len(Prepared(network, x).folded)


def test_grad_cam_looks_at_one_of_them(network) -> None:
    x = torch.rand(2, *FACTS.shape)
    mine, other = (LayerGradCam(each, strided(each)[1]).attribute(x, target=0) for each in (network, ordinary(network)))
    assert mine.abs().amax() > 0
    assert torch.equal(mine, other)
