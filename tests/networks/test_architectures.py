"""What holds for every architecture."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from captum.attr import GuidedBackprop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import networks
from networks import (
    MLP,
    DefensiveCNN,
    Facts,
    MobileNetV2,
    Network,
    ResNet18,
    ResNet50,
    TrafficSignCNN,
    WideResNet,
)
from networks.counts import multiply_adds, parameters

CIFAR = Facts(classes=10, channels=3, size=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
SMALL = replace(CIFAR, classes=7, size=8)

BUILDERS = {
    "mlp": lambda facts, **kw: MLP(facts, (20, 12), **kw),
    "mnist_cnn": lambda facts, **kw: DefensiveCNN(facts, "mnist", **kw),
    "mnist_cnn_reduced": lambda facts, **kw: DefensiveCNN(facts, "mnist", reduced=True, **kw),
    "cifar_cnn": DefensiveCNN,
    "cifar_cnn_reduced": lambda facts, **kw: DefensiveCNN(facts, reduced=True, **kw),
    "wrn_10_1": lambda facts, **kw: WideResNet(facts, 10, 1, **kw),
    "wrn_16_2": lambda facts, **kw: WideResNet(facts, 16, 2, dropout=0.3, **kw),
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "mobilenet": MobileNetV2,
    "signs_cnn": TrafficSignCNN,
    "signs_cnn_reduced": lambda facts, **kw: TrafficSignCNN(facts, reduced=True, **kw),
}
# How much larger than others' a network's images are; its poolings leave nothing of smaller ones.
SCALE = {"signs_cnn": 8, "signs_cnn_reduced": 8}
SMALLEST = {name: replace(SMALL, size=SMALL.size * SCALE.get(name, 1)) for name in BUILDERS}
every_network = pytest.mark.parametrize(
    ("build", "small"), [(build, SMALLEST[name]) for name, build in BUILDERS.items()], ids=BUILDERS
)


@pytest.mark.parametrize(
    ("build", "size", "cost"),
    [
        pytest.param(MobileNetV2, "2.297M", "91.2M", id="mobilenet"),
        pytest.param(ResNet18, "11.17M", "555M", id="resnet18"),
        pytest.param(ResNet50, "23.52M", "1298M", id="resnet50"),
        pytest.param(WideResNet, "46.16M", "6.66G", id="wrn_34_10"),
        pytest.param(lambda facts: WideResNet(facts, 40, 2), "2.2M", None, id="wrn_40_2"),
        pytest.param(lambda facts: WideResNet(facts, 16, 2), "0.7M", None, id="wrn_16_2"),
        pytest.param(DefensiveCNN, "2.43M", "98M", id="cnn"),
        pytest.param(lambda facts: DefensiveCNN(facts, reduced=True), "0.545M", "6.1M", id="cnn_reduced"),
    ],
)
def test_counts_are_the_published_ones(build, size, cost):
    with torch.device("meta"):  # shapes are enough
        network = build(CIFAR)
    assert _printed_like(size, parameters(network)) == size
    if cost:
        assert _printed_like(cost, multiply_adds(network, CIFAR.shape)) == cost


def _printed_like(text: str, count: int) -> str:
    """The count with the unit and the decimals of the text."""
    unit, decimals = text[-1], len(text[:-1].partition(".")[2])
    return f"{count / {'M': 1e6, 'G': 1e9}[unit]:.{decimals}f}{unit}"


def test_mlp_counts_are_the_published_weights():
    mnist = Facts(10, 1, 28, mean=[0.13], std=[0.31])
    assert multiply_adds(MLP(mnist), mnist.shape) == 2_392_800  # weights of the large model, biases left out
    assert multiply_adds(MLP(mnist, (400,)), mnist.shape) == 317_600


@every_network
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32])
def test_runs_on_any_channels_and_size(build, small, channels, size):
    facts = Facts(7, channels, size * small.size // SMALL.size, mean=[0.5] * channels, std=[0.25] * channels)
    network = build(facts).eval()
    x = torch.rand(2, *facts.shape, requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 7)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert gradient.abs().amax((1, 2, 3)).gt(0).all()


@every_network
def test_normalises_first(build, small):
    plain = build(small, normalize=False).eval()
    network = build(small).eval()
    network.load_state_dict(plain.state_dict())  # strict: normalisation is no state
    x = torch.rand(3, *small.shape)
    mean, std = torch.tensor(small.mean).view(-1, 1, 1), torch.tensor(small.std).view(-1, 1, 1)
    torch.testing.assert_close(network(x), plain((x - mean) / std))
    assert not torch.allclose(network(x), plain(x))


class ReluCounter(TorchDispatchMode):
    """Counts the operations that rectify, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(word in str(func) for word in ("relu", "clamp", "threshold", "hardtanh"))
        return func(*args, **(kwargs or {}))


@every_network
def test_each_relu_module_acts_once_and_nothing_else_rectifies(build, small):
    network = build(small).eval()
    modules = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    calls = []
    for module in modules:
        assert not module.inplace
        module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    with torch.no_grad(), ReluCounter() as counter:
        network(torch.rand(1, *small.shape))
    assert sorted(map(id, calls)) == sorted(map(id, modules))
    assert counter.count == len(modules) > 0


@every_network
@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_guided_backprop_works(build, small):
    network = build(small).eval()
    x = torch.rand(2, *small.shape, requires_grad=True)
    (plain,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
    guided = GuidedBackprop(network).attribute(x, target=0)
    assert guided.isfinite().all()
    assert not torch.allclose(guided, plain)


@every_network
def test_stages_run_in_order_and_the_last_one_feeds_the_head(build, small):
    network = build(small).eval()
    stages, seen, outputs = network.stages(), [], {}

    def hook(name):
        def record(module, inputs, output):
            seen.append(name)
            outputs[name] = output.shape

        return record

    for name, module in stages.items():
        assert any(module is own for own in network.modules())
        module.register_forward_hook(hook(name))
    network(torch.rand(2, *small.shape))
    assert seen == list(stages)
    assert len(outputs[seen[-1]]) == (2 if isinstance(network, MLP) else 4)
    if len(outputs[seen[-1]]) == 4:
        sizes = [shape[-1] for shape in outputs.values()]
        assert sizes == sorted(sizes, reverse=True)


def test_stage_counts():
    counts = {name: len(build(SMALLEST[name]).stages()) for name, build in BUILDERS.items()}
    assert counts == {
        "mlp": 2,
        "mnist_cnn": 2,
        "mnist_cnn_reduced": 2,
        "cifar_cnn": 2,
        "cifar_cnn_reduced": 2,
        "wrn_10_1": 3,
        "wrn_16_2": 3,
        "resnet18": 4,
        "resnet50": 4,
        "mobilenet": 4,
        "signs_cnn": 6,
        "signs_cnn_reduced": 3,
    }


@every_network
def test_every_parameter_learns(build, small):
    network = build(small)
    network(torch.rand(4, *small.shape)).logsumexp(1).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_everything_public_is_exported():
    assert sorted(networks.__all__) == sorted(
        name for name, value in vars(networks).items() if isinstance(value, type) and not name.startswith("_")
    )
    assert all(issubclass(getattr(networks, name), nn.Module | Facts) for name in networks.__all__)
    with pytest.raises(TypeError, match="abstract"):
        Network(SMALL)


@settings(deadline=None, max_examples=20)
@given(
    widths=st.lists(st.integers(1, 9), max_size=3),
    channels=st.integers(1, 3),
    size=st.integers(1, 5),
    classes=st.integers(2, 6),
)
def test_mlp_counts(widths, channels, size, classes):
    facts = Facts(classes, channels, size, mean=[0.0] * channels, std=[1.0] * channels)
    network = MLP(facts, widths)
    sizes = [channels * size * size, *widths, classes]
    products = sum(a * b for a, b in pairwise(sizes))
    assert multiply_adds(network, facts.shape) == products
    assert parameters(network) == products + sum(sizes[1:])
    assert list(network.stages()) == [f"hidden{i + 1}" for i in range(len(widths))]


def test_mlp_takes_points_of_the_plane():
    ring = Facts(3, 2, 1, mean=(0.0, 0.0), std=(1.0, 1.0), box=(-6.0, 6.0))
    assert MLP(ring, (32,))(torch.randn(5, 2, 1, 1)).shape == (5, 3)


@pytest.mark.parametrize("reduced", [False, True])
def test_cnn_names_the_smallest_image(reduced):
    with pytest.raises(ValueError, match=r"3×3 pixels .* smallest that work are 4×4"):
        DefensiveCNN(replace(CIFAR, size=3), reduced=reduced)
    smallest = replace(CIFAR, size=4)
    assert DefensiveCNN(smallest, reduced=reduced)(torch.rand(2, *smallest.shape)).shape == (2, 10)


def test_cnn_drops_before_each_dense_layer_but_the_last():
    def order(network):
        return [type(m).__name__ for m in network.modules() if isinstance(m, nn.Dropout | nn.Linear)]

    assert order(DefensiveCNN(SMALL)) == ["Dropout", "Linear", "Dropout", "Linear", "Linear"]
    assert order(DefensiveCNN(SMALL, reduced=True)) == ["Dropout", "Linear", "Linear"]
    assert all(m.p == 0.2 for m in DefensiveCNN(SMALL, dropout=0.2).modules() if isinstance(m, nn.Dropout))


def test_mobilenet_has_a_shortcut_wherever_the_stride_is_one():
    network = MobileNetV2(CIFAR).eval()
    shortcuts = []
    for block in (m for m in network.modules() if type(m).__name__ == "InvertedResidual"):
        nn.init.zeros_(block.residual[-1].weight)  # silences the residual: the shortcut is left alone
        inputs = block.residual[0].in_channels
        x = torch.rand(1, inputs, 4, 4)
        y = block(x)
        shortcuts.append("none" if not y.any() else "identity" if torch.equal(x, y) else "convolution")
        assert (shortcuts[-1] == "none") == (y.shape[-1] == 2)
    assert [shortcuts.count(kind) for kind in ("none", "identity", "convolution")] == [3, 10, 4]
