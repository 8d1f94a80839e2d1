"""Augmentation of a whole batch on its own device, with a draw of its own for every image.

What an image can look like is counted: a *view* is a number for its shift and for whether it is mirrored, in
[0, :data:`VIEWS`), and view 0 is the image as it is.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.draws import Draws

PADDING = 4
VIEWS = 2 * (2 * PADDING + 1) ** 2


def crop_and_flip(images: Tensor, draws: Draws, padding: int = PADDING, flip: bool = True) -> Tensor:
    """Shifts every image by its own offset and mirrors every second one, as torchvision's RandomCrop and flip do.

    Args:
        images: (B, C, H, W), of any dtype.
        draws: the images' draws; see :func:`draw_views`.
        padding: pixels of zeros on each side, out of which H by W are cut; offsets are uniform in [0, 2 * padding].
        flip: mirror left and right with probability 1/2.

    Returns:
        A new tensor of the same shape and dtype.
    """
    return shown(images, draw_views(draws, padding, flip), padding)


def draw_views(draws: Draws, padding: int = PADDING, flip: bool = True) -> Tensor:
    """A view for every image, uniformly, int64 (B,).

    Args:
        draws: the images' draws; two for the offset and, where flipped, a third are taken from them.
        padding: of :func:`crop_and_flip`.
        flip: whether an image may be mirrored.
    """
    side = 2 * padding + 1
    unit = draws.uniform((3 if flip else 2,)).double()
    # From the middle on, so that no shift is 0.
    down, right = (((unit[:, :2] * side).long() + side - padding) % side).unbind(1)
    view = down * side + right
    return view + side**2 * (unit[:, 2] >= 0.5) if flip else view


def shown(images: Tensor, view: Tensor, padding: int = PADDING) -> Tensor:
    """The images in these views, a new tensor of the same shape and dtype.

    Args:
        images: (B, C, H, W), of any dtype.
        view: int64 (B,) in [0, 2 (2 padding + 1)^2).
        padding: of :func:`crop_and_flip`.
    """
    count, channels, height, width = images.shape
    side = 2 * padding + 1
    position = torch.arange(count, device=images.device)
    top, left = (view // side + padding) % side, (view + padding) % side
    mirrored = view >= side**2
    images = torch.cat([images, images.flip(3)]).index_select(0, position + count * mirrored)
    left = torch.where(mirrored, 2 * padding - left, left)  # where the same window begins in a mirror image
    source = F.pad(images, [padding] * 4)
    per_image, per_channel, per_row, _ = source.stride()
    # A window of H by W begins at every pixel of the batch, so that one number per image chooses its crop, and whole
    # rows are copied. Those that begin too late to lie in one image are never chosen.
    beyond = (channels - 1) * per_channel + (height - 1) * per_row + width - 1
    shape = (source.numel() - beyond, channels, height, width)
    windows = source.as_strided(shape, (1, per_channel, per_row, 1))
    return windows.index_select(0, position * per_image + top * per_row + left)
