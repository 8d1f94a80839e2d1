"""The 1,797 handwritten digits of 8 by 8 pixels that scikit-learn carries: real images without a download."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from datamodules.base import Images
from networks.base import Facts


class Digits(Images):
    """Handwritten digits, 8 by 8, grey levels 0 to 16 spread over 0 to 255.

    The test set is one fixed fifth, stratified by class (360 images); 1,437 are left to train and validate. A mirrored
    digit is no digit, so augmentation is off by default. Arguments are those of :class:`Images`.
    """

    @property
    def facts(self) -> Facts:
        names = tuple(str(digit) for digit in range(10))
        return Facts(classes=10, channels=1, size=8, mean=(0.3053,), std=(0.3760,), names=names)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        values, labels = load_digits(return_X_y=True)
        # The fifth is part of the dataset's definition: its seed is no option, so every run tests on the same images.
        halves = train_test_split(values, labels, test_size=0.2, random_state=0, stratify=labels)
        values, labels = (halves[0], halves[2]) if train else (halves[1], halves[3])
        images = torch.from_numpy(values * 255 / 16).round().to(torch.uint8)
        return images.view(-1, 1, 8, 8), torch.from_numpy(labels).long()
