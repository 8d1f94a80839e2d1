"""Networks that look where a table says, and a small real one that can be explained by every method."""

import torch
from torch import Tensor, nn

from interpret.attributions import Maps, Method
from interpret.shared import Wanted

COUNT, SHAPE = 40, (2, 8, 8)


class Looks(nn.Module):
    """Looks at image i as row i of a table says; the images are told apart by their first value, i / 1000."""

    def __init__(self, table: Tensor, classes: int = 4) -> None:
        super().__init__()
        self.table, self.classes, self.calls = table, classes, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x[:, 0, 0, 0, None] * torch.arange(self.classes, device=x.device)

    def maps(self, x: Tensor) -> Tensor:
        return self.table[(1000 * x[:, 0, 0, 0]).round().long()]


class Planted(Method):
    """The maps that a network was made with."""

    name = "Planted"
    wanted = Wanted()

    def maps(self, model, x, passed):
        return Maps(model.maps(x))


class Real(nn.Module):
    """Two convolutional stages and a head: every method can explain it."""

    def __init__(self, classes: int = 4, channels: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(128, classes)
        nn.init.uniform_(self.head.weight, -0.07, 0.1)  # or Grad-CAM, which is rectified, might find nothing
        self.scale = scale

    def stages(self) -> dict[str, nn.Module]:
        return {"first": self.first, "second": self.second}

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.drop(self.second(self.first(x)).flatten(1)))


def real(seed: int, **kwargs) -> Real:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Real(**kwargs)


def images(count: int = COUNT, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and indices; the first value of image i is i / 1000."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *SHAPE, generator=generator)
    x[:, 0, 0, 0] = torch.arange(count) / 1000
    return x, torch.randint(0, 4, (count,), generator=generator), torch.arange(500, 500 + count)


def cut(size: int, count: int = COUNT) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The images in batches of a size."""
    return list(zip(*(part.split(size) for part in images(count)), strict=True))


def tables(count: int, how_many: int, seed: int = 0) -> Tensor:
    """Independent random maps, (how_many, count, C, H, W)."""
    return torch.randn(how_many, count, *SHAPE, generator=torch.Generator().manual_seed(seed))
