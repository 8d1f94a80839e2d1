"""MNIST (LeCun et al. 1998): 60,000 + 10,000 handwritten digits."""

from torchvision import datasets

from datamodules.published import Published
from networks.base import Facts


class MNIST(Published):
    """Handwritten digits in grey, 28 by 28.

    A mirrored digit is no digit, so augmentation is off by default. Arguments are those of :class:`Published`.
    """

    source = datasets.MNIST
    folder = "MNIST/raw"
    own = Facts(classes=10, channels=1, size=28, mean=(0.1307,), std=(0.3081,), names=tuple("0123456789"))
