"""What the tests of shift share: pictures, a network to be computed by hand, the published files in small."""

from functools import cache

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from datamodules.corrupted import COUNTED, EXTRAS, SEVERITIES


def pictures(count=6, size=32, channels=3, seed=0):
    """Pictures with edges and slopes, uint8 (n, C, H, W)."""
    rng = np.random.default_rng(seed)
    across = np.linspace(0, 1, size)
    phase = rng.uniform(0, 6, (count, channels, 1, 1))
    waves = 0.5 + 0.3 * np.sin(6 * across[:, None] + 3 * across + phase)
    waves[:, :, size // 4 : size // 2, size // 4 : size // 2] += 0.2
    return np.uint8(255 * waves.clip(0, 1))


@cache
def photographs():
    """Pieces of scikit-learn's two photographs, uint8 (126, 3, 32, 32)."""
    shrunk = [np.asarray(Image.fromarray(image).resize((160, 107))) for image in load_sample_images().images]
    corners = [(row, column) for row in range(0, 76, 11) for column in range(0, 129, 16)]
    pieces = [image[row : row + 32, column : column + 32] for image in shrunk for row, column in corners]
    return np.stack(pieces).transpose(0, 3, 1, 2)


class Brightness(nn.Module):
    """Class k of ``count`` for images whose mean is nearest to k / (count - 1)."""

    def __init__(self, count=4, scale=8.0):
        super().__init__()
        self.register_buffer("levels", torch.linspace(0, 1, count))
        self.scale = scale

    def forward(self, x):
        return -self.scale * (x.mean((1, 2, 3))[:, None] - self.levels).abs()


def batches(images, labels, *sizes):
    """(float images, labels, indices) in batches of these sizes."""
    whole = torch.from_numpy(images).float() / 255, torch.as_tensor(labels), torch.arange(len(images))
    return list(zip(*(part.split(list(sizes) or [len(images)]) for part in whole), strict=True))


def published(root, labels=range(10)):
    """A folder as published, of few images: row r of corruption k is filled with (k + r) modulo 256."""
    root.mkdir()
    np.save(root / "labels.npy", np.tile(labels, len(SEVERITIES)).astype(np.uint8))
    for k, name in enumerate((*COUNTED, *EXTRAS)):
        rows = (k + np.arange(len(SEVERITIES) * len(labels))) % 256
        np.save(
            root / f"{name}.npy", np.broadcast_to(rows[:, None, None, None], (len(rows), 32, 32, 3)).astype(np.uint8)
        )
    return root
