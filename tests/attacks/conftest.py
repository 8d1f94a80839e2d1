import pytest
import torch
from attack_helpers import Network
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def network() -> Network:
    """In the middle of training: mixed modes, mixed ``requires_grad``, gradients on some parameters."""
    network = Network()
    for norm in (network.bn, network.frozen_bn):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, 0, 0.3)
    with torch.no_grad():  # no class goes before the others, so that few changes lead from one to another
        network.head.bias -= network.eval()(torch.rand(64, 3, 8, 8)).mean(0)
    network.train()
    network.frozen_bn.eval()
    network.frozen_bn.requires_grad_(False)
    network.body[2].requires_grad_(False)
    network.body[2].eval()
    network.conv.weight.grad = torch.randn_like(network.conv.weight)
    network.body[2].weight.grad = torch.randn_like(network.body[2].weight)
    return network


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture(scope="session")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained on scikit-learn's digits, in eval mode, and test images that it classifies correctly."""
    data = load_digits()
    x, y = torch.tensor(data.images).float().unsqueeze(1) / 16, torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        order = torch.randperm(len(x))
        x, y = x[order], y[order]
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(6):
            for chosen in torch.randperm(1397).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
    model.eval().requires_grad_(False)
    x, y = x[1397:], y[1397:]
    right = model(x).argmax(1) == y
    return model, x[right], y[right]
