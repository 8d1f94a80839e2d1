"""Wide residual networks, with the module names of the published weights."""

from math import sqrt

from torch import Tensor, nn

from networks.base import Facts, Network


class WideResNet(Network):
    """Wide residual network (Zagoruyko and Komodakis 2016), whose state dict has the names of the one of TRADES.

    Three stages of ``(depth - 4) / 6`` pre-activation blocks, at full, half and quarter resolution. At 32×32 and 10
    classes: WRN-34-10 46.16M parameters and 6.66G multiply-adds, WRN-40-2 2.2M parameters, WRN-16-2 0.7M. The last
    map is averaged whole, which at 32×32 is the original's 8×8 pooling.

    Args:
        facts: the dataset's facts; images of any size.
        depth: number of layers, 6n + 4.
        width: factor on the 16, 32 and 64 channels of the stages.
        dropout: share of activations dropped between the two convolutions of a block while training.
        normalize: normalise the input first; False for the weights published with TRADES.

    Raises:
        ValueError: the depth is not 6n + 4.
    """

    def __init__(
        self, facts: Facts, depth: int = 34, width: int = 10, dropout: float = 0.0, normalize: bool = True
    ) -> None:
        super().__init__(facts, normalize)
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(f"The depth of a WideResNet is 6n + 4 (10, 16, 22, 28, 34, 40, …), not {depth}.")
        self.conv1 = nn.Conv2d(facts.channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, blocks, 1, dropout)
        self.block2 = Stage(16 * width, 32 * width, blocks, 2, dropout)
        self.block3 = Stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, facts.classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, 0, sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, C, H, W)``."""
        x = self.conv1(self.normalise(x))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(self.pool(self.relu(self.bn1(x))).flatten(1))

    def stages(self) -> dict[str, nn.Module]:
        return {"block1": self.block1, "block2": self.block2, "block3": self.block3}


class Block(nn.Module):
    """Pre-activation block ``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        residual = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(activated)))))
        # An identity carries the raw input, a convolution the activated one.
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + residual


class Stage(nn.Module):
    """Blocks of one resolution; the first one strides and widens."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride, dropout)
        self.layer = nn.Sequential(first, *(Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)
