"""The traffic signs' networks: sizes by hand, and what their poolings leave of an image."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from networks import Facts, TrafficSignCNN
from networks.counts import multiply_adds, parameters

SIGNS = Facts(classes=58, channels=3, size=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def names(network: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [type(module).__name__ for module in network.modules() if isinstance(module, kinds)]


def test_parameters_by_hand():
    def layer(fan_in: int, outputs: int) -> int:
        return fan_in * outputs + outputs

    full = layer(3 * 9, 64) + 5 * layer(64 * 9, 64)
    full += layer(64 * 4 * 4, 128) + layer(128, 128) + layer(128, 58)
    reduced = layer(3 * 9, 32) + 2 * layer(32 * 9, 32)
    reduced += layer(32 * 4 * 4, 64) + layer(64, 58)
    assert parameters(TrafficSignCNN(SIGNS)) == full == 341_626
    assert parameters(TrafficSignCNN(SIGNS, reduced=True)) == reduced == 55_994


def test_multiply_adds_by_hand():
    full = 256**2 * 27 * 64 + sum((256 // 2**i) ** 2 * 64 * 9 * 64 for i in range(1, 6))
    full += 1024 * 128 + 128 * 128 + 128 * 58
    reduced = 256**2 * 27 * 32 + (64**2 + 16**2) * 32 * 9 * 32 + 512 * 64 + 64 * 58
    with torch.device("meta"):
        assert multiply_adds(TrafficSignCNN(SIGNS), SIGNS.shape) == full
        assert multiply_adds(TrafficSignCNN(SIGNS, reduced=True), SIGNS.shape) == reduced


@pytest.mark.parametrize(
    ("reduced", "shapes"),
    [(False, [(64, size) for size in (128, 64, 32, 16, 8, 4)]), (True, [(32, size) for size in (64, 16, 4)])],
    ids=["full", "reduced"],
)
def test_each_stage_shrinks_the_image_to_four_by_four(reduced, shapes):
    network = TrafficSignCNN(SIGNS, reduced).eval()
    seen = []
    for stage in network.stages().values():
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    with torch.no_grad():
        assert network(torch.rand(2, *SIGNS.shape)).shape == (2, 58)
    assert list(network.stages()) == [f"stage{number}" for number in range(1, len(shapes) + 1)]
    assert seen == [(2, channels, size, size) for channels, size in shapes]


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("size", [64, 100, 127, 128])
def test_images_of_any_size_that_is_large_enough(reduced, size):
    facts = replace(SIGNS, size=size, classes=5)
    assert TrafficSignCNN(facts, reduced)(torch.rand(2, *facts.shape)).shape == (2, 5)


@pytest.mark.parametrize("reduced", [False, True])
def test_the_smallest_image_is_named(reduced):
    with pytest.raises(ValueError, match=r"63×63 pixels .* smallest that work are 64×64"):
        TrafficSignCNN(replace(SIGNS, size=63), reduced)


def test_it_drops_before_each_dense_layer_but_the_last():
    order = {reduced: names(TrafficSignCNN(SIGNS, reduced), nn.Dropout, nn.Linear) for reduced in (False, True)}
    assert order == {
        False: ["Dropout", "Linear", "Dropout", "Linear", "Linear"],
        True: ["Dropout", "Linear", "Linear"],
    }
    assert all(m.p == 0.2 for m in TrafficSignCNN(SIGNS, dropout=0.2).modules() if isinstance(m, nn.Dropout))


def test_each_convolution_is_rectified_and_pooled():
    layers = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)
    for reduced, count in ((False, 6), (True, 3)):
        found = [name for stage in TrafficSignCNN(SIGNS, reduced).stages().values() for name in names(stage, *layers)]
        assert found == ["Conv2d", "ReLU", "MaxPool2d"] * count
