"""Augmentation of a whole batch on its own device, with a draw of its own for every image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.draws import Draws


def crop_and_flip(images: Tensor, draws: Draws, padding: int = 4, flip: bool = True) -> Tensor:
    """Shifts every image by its own offset and mirrors every second one, as torchvision's RandomCrop and flip do.

    Args:
        images: (B, C, H, W), of any dtype.
        draws: the images' draws; two integers for the offset and, where flipped, a third are taken from them.
        padding: pixels of zeros on each side, out of which H by W are cut; offsets are uniform in [0, 2 * padding].
        flip: mirror left and right with probability 1/2.

    Returns:
        A new tensor of the same shape and dtype.
    """
    count, channels, height, width = images.shape
    device = images.device
    rows = draws.integers(2 * padding + 1)[:, None] + torch.arange(height, device=device)
    columns = draws.integers(2 * padding + 1)[:, None] + torch.arange(width, device=device)
    if flip:
        columns = torch.where(draws.integers(2)[:, None] == 1, columns.flip(1), columns)
    padded = F.pad(images, [padding] * 4)
    # One gather for the batch: the four index tensors broadcast to (B, C, H, W).
    return padded[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
