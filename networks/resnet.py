"""Residual networks for small images: torchvision's, but for the stem and for the ReLUs."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models import resnet

from networks.base import Facts, Network


class BasicBlock(resnet.BasicBlock):
    """torchvision's block with a ReLU module of its own at each place, as guided attributions need.

    Nothing is done in place: backward hooks forbid it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(resnet.Bottleneck):
    """torchvision's bottleneck with a ReLU module of its own at each place, nothing in place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.relu3(self.bn3(self.conv3(x)) + shortcut)


class _ResNet(Network):
    """Four stages after a 3×3 convolution of stride 1; the state dict has torchvision's names.

    Args:
        facts: the dataset's facts; images of any size.
        normalize: normalise the input first.
    """

    block: ClassVar[type[BasicBlock | Bottleneck]]
    blocks: ClassVar[Sequence[int]]

    def __init__(self, facts: Facts, normalize: bool = True) -> None:
        super().__init__(facts, normalize)
        body = resnet.ResNet(self.block, list(self.blocks), facts.classes)
        # Small images cannot afford the original stem, which shrinks them four times.
        self.conv1 = nn.Conv2d(facts.channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = body.bn1
        self.relu = nn.ReLU()
        self.layer1 = body.layer1
        self.layer2 = body.layer2
        self.layer3 = body.layer3
        self.layer4 = body.layer4
        self.avgpool = body.avgpool
        self.fc = body.fc

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, C, H, W)``."""
        x = self.relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))

    def stages(self) -> dict[str, nn.Module]:
        return {"layer1": self.layer1, "layer2": self.layer2, "layer3": self.layer3, "layer4": self.layer4}


class ResNet18(_ResNet):
    """ResNet-18 (He et al. 2016) with the stem for small images.

    11.17M parameters and 555M multiply-adds at 32×32, 10 classes.

    Args:
        facts: the dataset's facts; images of any size.
        normalize: normalise the input first.
    """

    block = BasicBlock
    blocks = (2, 2, 2, 2)


class ResNet50(_ResNet):
    """ResNet-50 (He et al. 2016) with the stem for small images.

    23.52M parameters and 1298M multiply-adds at 32×32, 10 classes.

    Args:
        facts: the dataset's facts; images of any size.
        normalize: normalise the input first.
    """

    block = Bottleneck
    blocks = (3, 4, 6, 3)
