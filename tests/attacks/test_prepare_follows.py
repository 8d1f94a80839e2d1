"""The copy that examples are crafted on while the original is trained: always the same function, never in its way."""

import copy

import pytest
import torch
from attack_helpers import untouched
from torch import nn
from torch.nn import functional as F

from attacks import PGD, Threat
from attacks.prepare import Prepared
from networks import DefensiveCNN, Facts, MobileNetV2, ResNet18, WideResNet

FACTS = Facts(7, 3, 8, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def two_norms():
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 7))


class Twice(nn.Module):
    """Its one linear layer has two names."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten())
        self.head = self.again = nn.Linear(256, 7)

    def forward(self, x):
        return self.again(self.body(x))


NETWORKS = {
    "ResNet-18": (lambda: ResNet18(FACTS), 20),
    "MobileNetV2": (lambda: MobileNetV2(FACTS), 57),
    "WRN-10-2": (lambda: WideResNet(FACTS, depth=10, width=2, dropout=0.3), 4),
    "DefensiveCNN": (lambda: DefensiveCNN(FACTS), 0),
    "two norms in a row": (two_norms, 1),
    "a layer of two names": (Twice, 1),
}


def trained(model, steps=2):
    """The model a few steps later, its running averages included."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(14, 3, 8, 8)), torch.arange(14) % 7).backward()
        optimizer.step()
    return model


def slope(model, x):
    x = x.clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad((logits * torch.linspace(-1, 1, 7)).sum(), x)
    return logits.detach(), gradient


@pytest.mark.parametrize(("build", "folded"), NETWORKS.values(), ids=NETWORKS)
def test_logits_and_gradients_are_the_trained_networks(build, folded):
    torch.manual_seed(0)
    model, x = build(), torch.rand(5, 3, 8, 8)
    prepared = Prepared(model, x[:2])
    assert len(prepared.folded) == folded
    earlier, _ = slope(prepared.follow(), x)
    trained(model)
    with untouched(model):
        network = prepared.follow()
    assert network is prepared.network
    assert not any(parameter.requires_grad for parameter in network.parameters())
    logits, gradient = slope(network, x)
    expected, expected_gradient = slope(copy.deepcopy(model).eval().double(), x.double())
    assert (earlier - logits).abs().max() > 1e-3  # so it has indeed changed
    assert (logits - expected).norm() < 1e-5 * expected.norm()
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_examples_are_those_that_the_network_itself_gives():
    torch.manual_seed(0)
    model, x, y = WideResNet(FACTS, depth=10, width=2), torch.rand(8, 3, 8, 8), torch.arange(8) % 7
    prepared = Prepared(model, x[:2])
    trained(model)
    attack = PGD(Threat("linf", 0.1), steps=5)
    examples = []
    for network in (prepared.follow(), model):
        torch.manual_seed(1)
        examples.append(attack(network, x, y))
    # A gradient of nearly nothing has another sign once in a while.
    assert ((examples[0] - examples[1]).abs() > 1e-6).float().mean() < 0.01


def test_autocast_around_it_changes_neither_whether_nor_how_it_is_copied():
    model, x = WideResNet(FACTS, depth=10, width=1), torch.rand(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        prepared = Prepared(model, x)
        network = prepared.follow()
        assert network(x).dtype == torch.bfloat16
    assert len(prepared.folded) == 3
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
