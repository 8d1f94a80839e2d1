"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 photographs of ten kinds of thing."""

from typing import Any

from torchvision import datasets

from datamodules.published import Published
from networks.base import Facts

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(Published):
    """Colour photographs, 32 by 32.

    Args:
        root: folder that holds the downloads.
        augment: shift and mirror the training images.
        kwargs: see :class:`Published`.
    """

    source = datasets.CIFAR10
    folder = "cifar-10-batches-py"
    own = Facts(
        classes=10,
        channels=3,
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        names=NAMES,
    )

    def __init__(self, root: str = "data", augment: bool = True, **kwargs: Any) -> None:
        super().__init__(root, augment=augment, **kwargs)
