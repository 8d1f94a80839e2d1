"""What the attack benchmark attacks: networks trained on the spot on scikit-learn's digits."""

import time
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import FGSM, Radius, Threat
from networks import DefensiveCNN, Facts, WideResNet
from networks.counts import multiply_adds, parameters

TRAINED_AT = 0.1
TRAIN = 1300  # of the 1,797 digits


def digits(channels: int, size: int) -> tuple[Facts, Tensor, Tensor]:
    """All digits in one fixed order, scaled up: the facts, images (1797, channels, size, size) and labels."""
    values, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    small = torch.from_numpy(values).float().view(-1, 1, 8, 8)[order] / 16
    images = F.interpolate(small, size=size, mode="bilinear").expand(-1, channels, -1, -1).contiguous()
    return Facts(10, channels, size, [0.3] * channels, [0.38] * channels), images, torch.from_numpy(labels)[order]


def train(network: nn.Module, x: Tensor, y: Tensor, epochs: int, attack: FGSM | None, device: str) -> nn.Module:
    """Trains on clean images, or on one step from a random start (fast adversarial training, Wong et al. 2020)."""
    network, x, y = network.to(device), x.to(device), y.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(x), device=device).split(64)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2 if attack else 0.05, total_steps=len(batches))
    for batch in batches:
        images, labels = x[batch], y[batch]
        if attack is not None:
            start = images + torch.empty_like(images).uniform_(-TRAINED_AT, TRAINED_AT)
            moved = attack(network, attack.threat.clamp(start), labels)
            images = attack.threat.project(moved, images)
        network.train()
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@dataclass(frozen=True)
class Subject:
    """A trained network and the test images that it classifies correctly."""

    network: nn.Module
    about: str
    cost: int
    x: Tensor
    y: Tensor


def subject(kind: str, device: str, frozen: bool) -> Subject:
    """Trains a network (``wrn`` or ``cnn``) and says what it is."""
    torch.manual_seed(0)
    began = time.perf_counter()
    facts, x, y = digits(3, 32) if kind == "wrn" else digits(1, 28)
    if kind == "wrn":
        network = train(
            WideResNet(facts, 16, 2), x[:TRAIN], y[:TRAIN], 3, FGSM(Threat("linf", Radius(TRAINED_AT))), device
        )
    else:
        network = train(DefensiveCNN(facts, "mnist", reduced=True), x[:TRAIN], y[:TRAIN], 5, None, device)
    x, y = x[TRAIN:].to(device), y[TRAIN:].to(device)
    with torch.no_grad():
        right = network(x).argmax(1) == y
    cost = multiply_adds(network, facts.shape)
    name = "WRN-16-2, fast adversarial training" if kind == "wrn" else "the reduced CNN of defensive distillation"
    shape = "×".join(map(str, facts.shape))
    about = (
        f"{name}: {parameters(network) / 1e6:.2f}M parameters, {cost / 1e6:.1f}M multiply-adds, digits at {shape}, "
        f"clean accuracy {right.float().mean():.1%}, trained in {time.perf_counter() - began:.0f} s"
    )
    network.requires_grad_(not frozen)
    return Subject(network, about, cost, x[right], y[right])
