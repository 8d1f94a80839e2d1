"""What the tests of stored answers share: images of CIFAR's shape, their teacher, and a way to read a file."""

from pathlib import Path
from typing import Any

import torch
from regime_helpers import Losses, build, mlp, trainer
from torch import Tensor
from torchvision.transforms import functional as TF

from datamodules import Images
from lightning_modules import FrozenTeacher, TeacherSource
from lightning_modules.answers_cache import AnswersCache, open_cache
from networks import Facts

CPU = torch.device("cpu")


class Photographs(Images):
    """Noise of CIFAR's shape, 24 training images and 8 test images."""

    facts = Facts(classes=4, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        count = 24 if train else 8
        images = torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(int(train)))
        return images.to(torch.uint8), torch.arange(count) % 4


def photographs(**kwargs: Any) -> Photographs:
    """Eighteen images to train on, in batches of 8."""
    data = Photographs(**{"batch_size": 8, "augment": True, "validation": 0.25} | kwargs)
    data.setup("fit")
    return data


def frozen(seed: int = 0) -> FrozenTeacher:
    """A teacher of the photographs."""
    torch.manual_seed(seed)
    return FrozenTeacher(mlp(Photographs.facts), f"hash {seed}", "a test", 1.0)


def opened(teacher: FrozenTeacher | None = None, precision: str = "32-true", **kwargs: Any) -> AnswersCache:
    """The cache of a teacher's answers on the photographs."""
    return open_cache(teacher or frozen(), photographs(**kwargs), precision, CPU)


def run(regime: Any, teacher: TeacherSource, data: Images, folder: Path, **kwargs: Any) -> tuple[Any, Any, Any]:
    """A fit; the student, its losses, and the figures logged."""
    epochs, callbacks = kwargs.pop("epochs", 2), kwargs.pop("callbacks", [])
    torch.manual_seed(0)
    student = build(regime, teacher, **{"facts": data.facts} | kwargs)
    losses = Losses()
    fit = trainer(folder, callbacks=[losses, *callbacks], max_epochs=epochs, limit_train_batches=1.0)
    fit.fit(student, datamodule=data)
    return student, losses.values, {key: float(value) for key, value in fit.callback_metrics.items()}


def stored(folder: Path, data: Images) -> tuple[Tensor, Tensor]:
    """The only file's logits (N, views, classes) and flags (N, views), read as bytes."""
    (file,) = folder.glob("answers-*")
    count, views, classes = len(data.training_images), data.views, data.facts.classes
    content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
    logits, filled = content.split([count * views * classes * 2, count * views])
    return logits.view(torch.half).view(count, views, classes), filled.view(count, views).bool()


def views_of(image: Tensor) -> Tensor:
    """All 162 views by torchvision, in the order of their numbers: view 0 is the image, shifts go on modulo 9."""
    padded = TF.pad(image, [4])
    size = image.shape[-1]
    starts = [(number + 4) % 9 for number in range(9)]
    crops = [TF.crop(padded, top, left, size, size) for top in starts for left in starts]
    return torch.stack([*crops, *map(TF.hflip, crops)])


def assert_stored_as_computed(logits: Tensor, filled: Tensor, data: Images, teacher: FrozenTeacher) -> int:
    """Holds what is stored against the teacher's word on torchvision's crops; how many answers that are."""
    for index in filled.any(1).nonzero().squeeze(1).tolist():
        there = filled[index]
        said = teacher(views_of(data.training_images[index])[there] / 255).half()
        torch.testing.assert_close(logits[index, there], said, rtol=2**-9, atol=1e-4)
    return int(filled.sum())
