"""The copy on which a suite's attacks search: the same function, faster, and nothing of the original touched."""

import threading

import pytest
import torch
from attack_helpers import Network, untouched
from torch import nn
from torch.nn import functional as F

from attacks.prepare import BATCH_NORMS, CONVOLUTIONS, prepared
from networks import MLP, DefensiveCNN, Facts, MobileNetV2, ResNet18, WideResNet

FACTS = Facts(7, 3, 8, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def randomised(model):
    """A model whose batch-norms have something to say."""
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def called_norms(traced):
    """The batch-norms that are called, and whether each directly follows a convolution that nothing else uses."""
    modules = dict(traced.named_modules())
    found = []
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], BATCH_NORMS):
            before = node.args[0]
            follows = before.op == "call_module" and isinstance(modules[before.target], CONVOLUTIONS)
            found.append(follows and len(before.users) == 1)
    return found


def gradient(model, x):
    x = x.clone().requires_grad_()
    logits = model(x)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (found,) = torch.autograd.grad((weights * logits).sum(), x)
    return logits.detach(), found


def assert_same_function(copy, model, x):
    logits, slope = gradient(copy, x)
    expected, expected_slope = gradient(model, x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(slope, expected_slope, rtol=1e-3, atol=1e-3 * float(expected_slope.abs().max()))


NETWORKS = {
    "ResNet-18": (lambda: ResNet18(FACTS), 0),
    "MobileNetV2": (lambda: MobileNetV2(FACTS), 0),
    # The first norm of a block follows the stem or a sum; the stem's output goes round the first block, too.
    "WRN-10-1": (lambda: WideResNet(FACTS, depth=10, width=1), 4),
    # A wider first block has its shortcut after the norm, which so is all that uses the stem's output.
    "WRN-10-2": (lambda: WideResNet(FACTS, depth=10, width=2, dropout=0.3), 3),
}


@pytest.mark.parametrize(("build", "norms"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("training", [False, True], ids=["in eval mode", "in training"])
def test_the_copy_computes_the_same(build, norms, training):
    model = randomised(build()).train(training)
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.randn_like(parameter)
    x, other = torch.rand(4, 3, 8, 8), torch.rand(3, 3, 8, 8)
    with untouched(model):
        copy = prepared(model, x)
    assert copy is not model
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    # tracing makes plain containers, which have no mode
    assert not any(module.training for module in copy.modules() if type(module) is not nn.Module)
    assert {id(p) for p in copy.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    found = called_norms(copy)
    assert len(found) == norms
    assert not any(found)
    assert_same_function(copy, model.eval(), other)


def test_convolutions_are_in_channels_last_order():
    copy = prepared(ResNet18(FACTS), torch.rand(2, 3, 8, 8))
    weights = [module.weight for module in copy.modules() if isinstance(module, nn.Conv2d)]
    assert len(weights) == 20
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_the_mode_that_surrounds_the_call_does_not_matter():
    model = randomised(WideResNet(FACTS, depth=10, width=1))
    with torch.no_grad():
        copy = prepared(model, torch.rand(2, 3, 8, 8))
    assert copy is not model
    assert_same_function(copy, model.eval(), torch.rand(2, 3, 8, 8))


def test_two_norms_in_a_row_are_both_folded():
    model = randomised(Network()).eval()
    copy = prepared(model, torch.rand(4, 3, 8, 8))
    assert_same_function(copy, model, torch.rand(3, 3, 8, 8))
    assert copy is not model


# --- what is left alone ---


class Branches(nn.Module):
    """What it does depends on the images."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x):
        return self.net(x) if x.mean() > 0.5 else -self.net(x)


class Random(Branches):
    def forward(self, x):
        return self.net(x + 0.3 * torch.randn_like(x))


class DropsAlways(Branches):
    def forward(self, x):
        return F.dropout(self.net(x), 0.5, training=True)


class Locked(Branches):
    """Cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        return self.net(x)


def hooked():
    """Its logits are changed from outside, which tracing does not see."""
    model = Branches().net
    model.register_forward_hook(lambda module, given, logits: logits * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    return model


LEFT = {
    "branches": Branches,
    "random": Random,
    "dropout in eval mode": DropsAlways,
    "cannot be copied": Locked,
    "hooked": hooked,
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.BatchNorm1d(9)),
    "MLP": lambda: MLP(FACTS),
}


@pytest.mark.parametrize("build", LEFT.values(), ids=LEFT)
def test_what_cannot_be_copied_is_used_as_it_is(build):
    model = randomised(build()).train()
    with untouched(model):
        assert prepared(model, torch.rand(4, 3, 8, 8)) is model


class Shared(nn.Module):
    """Two convolutions before one norm, or one before two."""

    def __init__(self, convs, norms):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(convs))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(norms))
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        for number in range(2):
            x = torch.tanh(self.norms[number % len(self.norms)](self.convs[number % len(self.convs)](x)))
        return self.head(x.mean((2, 3)))


class UsedTwice(Shared):
    """The convolution's output is used beside its norm, too."""

    def forward(self, x):
        x = self.convs[0](x)
        return self.head((x + self.norms[0](x)).mean((2, 3)))


class Functional(Shared):
    """The norm follows a function, and a convolution before it is none of its own."""

    def forward(self, x):
        return self.head(self.norms[0](F.relu(self.convs[0](x))).mean((2, 3)))


UNFOLDED = {
    "two convolutions, one norm": (lambda: Shared(2, 1), 2),
    "one convolution, two norms": (lambda: Shared(1, 2), 2),
    "both of them twice": (lambda: Shared(1, 1), 2),
    "used beside the norm": (lambda: UsedTwice(1, 1), 1),
    "a function between": (lambda: Functional(1, 1), 1),
}


@pytest.mark.parametrize(("build", "norms"), UNFOLDED.values(), ids=UNFOLDED)
def test_a_norm_that_is_not_one_convolutions_own_is_not_folded(build, norms):
    model = randomised(build()).eval()
    x = torch.rand(4, 3, 8, 8)
    with untouched(model):
        copy = prepared(model, x)
    if copy is not model:
        assert len(called_norms(copy)) == norms
    assert_same_function(copy, model, torch.rand(3, 3, 8, 8))


def test_a_norm_without_running_averages_is_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    randomised(model).eval()
    copy = prepared(model, torch.rand(4, 3, 8, 8))
    assert copy is model or called_norms(copy) == [True]
    assert_same_function(copy, model, torch.rand(3, 3, 8, 8))


def test_a_norm_without_weights_is_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Tanh(), nn.Flatten()).eval()
    nn.init.normal_(model[1].running_mean)
    copy = prepared(model, torch.rand(4, 3, 8, 8))
    assert called_norms(copy) == []
    assert_same_function(copy, model, torch.rand(3, 3, 8, 8))


def test_a_network_of_doubles_or_without_norms_is_copied_too():
    cnn = DefensiveCNN(Facts(7, 1, 28, [0.5], [0.5]))
    net = WideResNet(FACTS, depth=10, width=1).double()
    for model, x in ((cnn.eval(), torch.rand(2, 1, 28, 28)), (net.eval(), torch.rand(2, 3, 8, 8).double())):
        copy = prepared(model, x)
        assert copy is not model
        assert_same_function(copy, model, x)
