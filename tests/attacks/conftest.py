import pytest
import torch
from attack_helpers import Network
from torch import Tensor, nn


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
