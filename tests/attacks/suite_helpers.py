"""Ten images of which every answer is known by hand, and thirty on which an attack's draws matter."""

import pytest
import torch
from attack_helpers import TwoClasses
from torch import nn

from attacks import Threat

THREAT = Threat("linf", 0.1)

# Ten images of two equal pixels, their value and their label. The model says 1 above 0.5, so within a radius of 0.1
# nothing can be done to values under 0.4 or above 0.6. Three are wrong when clean.
VALUES = torch.tensor([0.10, 0.30, 0.45, 0.48, 0.20, 0.90, 0.70, 0.55, 0.52, 0.80])
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
CLEAN = [True, True, True, True, False, True, True, True, False, False]
ROBUST = [True, True, False, False, False, True, True, False, False, False]


def up(x):
    return (x + 0.1).clamp(0, 1)


def down(x):
    return (x - 0.1).clamp(0, 1)


UP = [True, True, False, False, False, True, True, True, False, False]  # breaks 0.45 and 0.48, which are below
DOWN = [True, True, True, True, False, True, True, False, False, False]  # breaks 0.55, which is above


def halves():
    """Class 1 where the mean of an image's two pixels is above 0.5."""
    return TwoClasses(torch.full((2,), 0.5), bias=-0.5)


def batches(*sizes):
    """The ten images, cut into batches of these sizes; their indices are 100, 101, ..."""
    images = VALUES.reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()
    whole = images, LABELS, torch.arange(100, 110)
    return list(zip(*(part.split(list(sizes) or [10]) for part in whole), strict=True))


def by_metric(result):
    return {record.metric: record for record in result.records()}


def smooth(classes=4):
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 1.0 / parameter.shape[-1] ** 0.5)
    return model


def pictures(model, count=30):
    x = torch.rand(count, 3, 3, 3, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::6] = (y[::6] + 1) % 4
    return x, y, torch.arange(1000, 1000 + count)


def assert_same(one, other):
    assert one.index.tolist() == other.index.tolist()
    assert one.label.tolist() == other.label.tolist()
    assert list(one.outcomes) == list(other.outcomes)
    for name, found in one.outcomes.items():
        for column in ("prediction", "rank", "attacked", "forwards", "backwards"):
            assert getattr(found, column).tolist() == getattr(other.outcomes[name], column).tolist(), (name, column)
        for column in ("linf", "l2"):
            expected = getattr(other.outcomes[name], column)
            assert getattr(found, column) == pytest.approx(expected, abs=1e-6), (name, column)
