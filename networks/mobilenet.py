"""MobileNetV2 for small images."""

from typing import Any

import torch
from torch import Tensor, nn

from networks.base import Facts, Network

# Per stage, i.e. per resolution: (expansion, output channels, blocks, stride of the first block).
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV2(Network):
    """MobileNetV2 (Sandler et al. 2018) in the form for CIFAR that ARD distils into (Goldblum et al. 2020).

    Against the original: strides of 1 in the stem and in the 24-channel blocks, ReLU for ReLU6, and a shortcut in
    every block of stride 1, through a 1×1 convolution where the channels differ. 2.297M parameters and 91.2M
    multiply-adds at 32×32, 10 classes.

    Args:
        facts: the dataset's facts; images of any size.
        normalize: normalise the input first.
    """

    def __init__(self, facts: Facts, normalize: bool = True) -> None:
        super().__init__(facts, normalize)
        self.stem = nn.Sequential(*_convolution(facts.channels, 32, 3), nn.ReLU())
        channels = 32
        stages = []
        for groups in STAGES:
            blocks: list[nn.Module] = []
            for expansion, outputs, repeats, stride in groups:
                for i in range(repeats):
                    blocks.append(InvertedResidual(channels, outputs, expansion, stride if i == 0 else 1))
                    channels = outputs
            stages.append(blocks)
        stages[-1] += [*_convolution(channels, 1280, 1), nn.ReLU()]
        self.stage1, self.stage2, self.stage3, self.stage4 = (nn.Sequential(*blocks) for blocks in stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1280, facts.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, C, H, W)``."""
        x = self.stem(self.normalise(x))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(self.pool(x).flatten(1))

    def stages(self) -> dict[str, nn.Module]:
        return {"stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3, "stage4": self.stage4}


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project: ``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.residual = nn.Sequential(
            *_convolution(inputs, inner, 1),
            nn.ReLU(),
            *_convolution(inner, inner, 3, stride, groups=inner),
            nn.ReLU(),
            *_convolution(inner, outputs, 1),
        )
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = nn.Identity() if inputs == outputs else nn.Sequential(*_convolution(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.residual(x)
        return residual if self.shortcut is None else residual + self.shortcut(x)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution that keeps the size of the image, up to its stride, and its batch-norm."""
    form = FullPrecision if stride > 1 and groups > 1 else nn.Conv2d
    conv = form(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs)


class FullPrecision(nn.Conv2d):
    """A convolution that leaves autocast on a CPU; arguments are those of :class:`torch.nn.Conv2d`.

    There the gradient of the images of a depthwise one with a stride takes 5 to 50 times as long in bfloat16.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # torch.fx looks into modules that are not torch's own, and batch-norm behind what it finds there is not folded.
        self.__module__ = nn.Conv2d.__module__

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H', W')`` of ``(B, C, H, W)``, in the precision of the weights."""
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))
