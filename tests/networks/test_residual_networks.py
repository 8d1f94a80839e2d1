"""WideResNet and ResNet against independent formulations, and against the format of published weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from networks import Facts, ResNet18, ResNet50, WideResNet

FACTS = Facts(classes=10, channels=3, size=16, mean=(0.5,) * 3, std=(0.25,) * 3)


def _randomise_batch_norm(network: nn.Module) -> None:
    """Fresh batch-norms are near identities, which hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.3)


def test_wrn_keys_are_the_published_ones():
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["conv1.weight"]
    for stage in (1, 2, 3):
        block = f"block{stage}.layer.0"
        expected += [f"{block}.bn1.{name}" for name in bn] + [f"{block}.conv1.weight"]
        expected += [f"{block}.bn2.{name}" for name in bn] + [f"{block}.conv2.weight"]
        if stage > 1:  # 16 channels stay 16 in the first stage of width 1
            expected.append(f"{block}.convShortcut.weight")
    expected += [f"bn1.{name}" for name in bn] + ["fc.weight", "fc.bias"]
    assert list(WideResNet(FACTS, 10, 1).state_dict()) == expected


def test_wrn_34_10_has_the_published_shapes():
    with torch.device("meta"):
        network = WideResNet(FACTS)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["conv1.weight"] == (16, 3, 3, 3)
    assert shapes["block1.layer.0.convShortcut.weight"] == (160, 16, 1, 1)
    assert shapes["block2.layer.4.conv2.weight"] == (320, 320, 3, 3)
    assert shapes["block3.layer.0.bn1.weight"] == (320,)
    assert shapes["fc.weight"] == (10, 640)
    assert "block3.layer.5.conv1.weight" not in shapes
    modules = dict(network.named_modules())
    assert {"relu", "block1.layer.0.relu1", "block3.layer.4.relu2"} <= modules.keys()


def _wrn(state: dict[str, torch.Tensor], x: torch.Tensor, blocks: int) -> torch.Tensor:
    """The network of the paper, written from the state dict alone."""

    def bn(x, name):
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for i in range(blocks):
            name, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            activated = bn(x, f"{name}.bn1")
            y = F.conv2d(activated, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(bn(y, f"{name}.bn2"), state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.convShortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(activated, shortcut, stride=stride))
    x = F.avg_pool2d(bn(x, "bn1"), 8).flatten(1)
    return F.linear(x, state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_wrn_computes_what_the_paper_says(depth, width):
    network = WideResNet(FACTS, depth, width, dropout=0.5, normalize=False).eval()
    _randomise_batch_norm(network)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(x), _wrn(network.state_dict(), x, (depth - 4) // 6), rtol=1e-4, atol=1e-5)


def test_wrn_drops_between_the_convolutions_only_while_training():
    network = WideResNet(FACTS, 10, 1, dropout=0.5)
    x = torch.rand(2, *FACTS.shape)
    for module in network.modules():  # batch statistics would differ anyway
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
    twin = WideResNet(FACTS, 10, 1).eval()
    twin.load_state_dict(network.state_dict())
    assert torch.equal(network(x), twin(x))


def test_wrn_starts_as_the_original():
    network = WideResNet(FACTS, 10, 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            if module.weight.numel() > 5000:
                assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
    assert network.fc.bias.eq(0).all()


@pytest.mark.parametrize("depth", [4, 0, -2, 12, 18, 33])
def test_wrn_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=rf"6n \+ 4 .* not {depth}\."):
        WideResNet(FACTS, depth, 1)


@pytest.mark.parametrize(("ours", "theirs"), [(ResNet18, models.resnet18), (ResNet50, models.resnet50)])
def test_resnet_is_torchvisions_with_another_stem(ours, theirs):
    reference = theirs(num_classes=10).eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    _randomise_batch_norm(reference)
    network = ours(FACTS, normalize=False).eval()
    network.load_state_dict(reference.state_dict())
    x = torch.rand(2, *FACTS.shape)
    torch.testing.assert_close(network(x), reference(x))
