"""Architectures: each maps images of the dataset's box to logits, and normalises them itself."""

from networks.base import Facts, Network, Normalise
from networks.defensive_cnn import DefensiveCNN
from networks.mlp import MLP
from networks.mobilenet import MobileNetV2
from networks.resnet import ResNet18, ResNet50
from networks.traffic_sign_cnn import TrafficSignCNN
from networks.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "DefensiveCNN",
    "Facts",
    "MobileNetV2",
    "Network",
    "Normalise",
    "ResNet18",
    "ResNet50",
    "TrafficSignCNN",
    "WideResNet",
]
