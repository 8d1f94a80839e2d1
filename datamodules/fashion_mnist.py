"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 pictures of clothes, in the format of MNIST."""

from torchvision import datasets

from datamodules.published import Published
from networks.base import Facts


class FashionMNIST(Published):
    """Clothes in grey, 28 by 28. Arguments are those of :class:`Published`."""

    source = datasets.FashionMNIST
    folder = "FashionMNIST/raw"
    own = Facts(
        classes=10,
        channels=1,
        size=28,
        mean=(0.2860,),
        std=(0.3530,),
        names=tuple(datasets.FashionMNIST.classes),
    )
