"""Datasets: images as uint8 tensors in memory, put together into batches and augmented on the training device."""

from datamodules.base import Batch, Images, Indices, Split
from datamodules.cifar10 import CIFAR10
from datamodules.cifar100 import CIFAR100
from datamodules.cinic10 import CINIC10
from datamodules.corrupted import CIFAR10C, CIFAR100C
from datamodules.digits import Digits
from datamodules.fashion_mnist import FashionMNIST
from datamodules.gtsrb import GTSRB
from datamodules.image_folder import ImageFolder
from datamodules.mnist import MNIST
from datamodules.toy_ring import ToyRing
from datamodules.tsrd import TSRD

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "CIFAR100",
    "CIFAR100C",
    "CINIC10",
    "GTSRB",
    "MNIST",
    "TSRD",
    "Batch",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "Images",
    "Indices",
    "Split",
    "ToyRing",
]
