"""Gradient amplitudes and the heat map of layers: against closed forms, and independent of batches."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console
from torch import nn

from interpret.sensitivity import BINS, NAMES, amplitudes, counts, heat_map, records, shares, table
from networks import DefensiveCNN, Facts, ResNet18

FACTS = Facts(classes=3, channels=1, size=8, mean=(0.3,), std=(0.4,))


def linear(scale=1.0, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, classes))
    with torch.no_grad():
        model[1].weight.copy_(scale * torch.randn(classes, 6, generator=generator))
        model[1].bias.copy_(scale * torch.randn(classes, generator=generator))
    return model


def images(count=12, shape=(1, 2, 3), classes=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, *shape, generator=generator), torch.randint(classes, (count,), generator=generator)


def batches(x, y, size=5):
    return list(zip(x.split(size), y.split(size), torch.arange(len(x)).split(size), strict=True))


def closed_form(model, x, temperature):
    """Mean |d softmax(Wx / T)_c / dx_i| of every image, in exact arithmetic of the logits' differences."""
    weight, bias = (p.detach().double().numpy() for p in (model[1].weight, model[1].bias))
    z = (x.double().flatten(1).numpy() @ weight.T + bias) / temperature
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = [
        p[:, [c]] * sum(p[:, [k]] * (weight[c] - weight[k]) for k in range(len(weight))) for c in range(len(weight))
    ]
    return np.abs(np.stack(rows, 1) / temperature).mean((1, 2))


def printed(shown):
    out = io.StringIO()
    Console(file=out, width=120).print(shown)
    return out.getvalue()


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    grads = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    flags = [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]
    return {name: tensor.clone() for name, tensor in {**tensors, **grads}.items()}, flags


def network():
    """In the middle of training: mixed modes, a frozen layer, a gradient that was accumulated."""
    torch.manual_seed(0)
    model = ResNet18(FACTS)
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    return model


# --- amplitudes ---


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_the_jacobian_of_a_linear_models_probabilities(temperature):
    model, (x, y) = linear(), images()
    found = amplitudes(model, batches(x, y), temperature=temperature)
    assert found.dtype == np.float64
    assert found == pytest.approx(closed_form(model, x, temperature), rel=1e-12)


def test_the_jacobian_of_a_linear_models_logits():
    model, (x, y) = linear(), images()
    expected = float(model[1].weight.detach().double().abs().mean())
    assert amplitudes(model, batches(x, y), of="logits") == pytest.approx(expected, rel=1e-12)
    assert amplitudes(model, batches(x, y), of="logits", temperature=4) == pytest.approx(expected / 4, rel=1e-12)


@pytest.mark.parametrize("scale", [20.0, 60.0, 200.0])
def test_hardened_networks_keep_their_amplitudes(scale):
    """Below float32's range they are not 0, and near 1 - p = 1e-16 no digit is lost to rounding."""
    model, (x, y) = linear(scale), images(40)
    found, expected = amplitudes(model, batches(x, y)), closed_form(model, x, 1.0)
    assert found == pytest.approx(expected, rel=1e-8, abs=0)
    assert (found > 0).all()
    if scale == 200:
        assert found.min() < 1e-38


def test_it_is_torchs_own_jacobian():
    torch.manual_seed(0)
    model = DefensiveCNN(FACTS, "mnist", reduced=True).double().eval()
    x, y = images(3, (1, 8, 8))
    with torch.no_grad():
        model.fc.weight *= 10
    found = amplitudes(model, batches(x, y))
    for image, amplitude in zip(x.double(), found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None]).softmax(1)[0], image)
        assert amplitude == pytest.approx(float(jacobian.abs().mean()), rel=1e-10)


def test_they_do_not_depend_on_the_batches():
    model = network()
    x, y = images(9, (1, 8, 8))
    assert amplitudes(model, batches(x, y, 9)) == pytest.approx(amplitudes(model, batches(x, y, 2)), rel=1e-9)


def test_the_network_and_its_gradients_stay():
    model = network()
    before = state(model)
    x, y = images(4, (1, 8, 8))
    with torch.inference_mode():
        amplitudes(model, batches(x.clone(), y.clone()))
        heat_map(model, batches(x.clone(), y.clone()))
    tensors, flags = state(model)
    assert flags == before[1]
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())
    assert x.grad is None


def test_what_has_no_amplitude_is_refused():
    model, (x, y) = linear(), images()
    with pytest.raises(ValueError, match="one of 'probabilities' or 'logits', got 'p'"):
        amplitudes(model, batches(x, y), of="p")
    with pytest.raises(ValueError, match="temperature must be positive and finite, got -1"):
        amplitudes(model, batches(x, y), temperature=-1)
    with pytest.raises(ValueError, match="no images"):
        amplitudes(model, [])
    with pytest.raises(ValueError, match="not finite"):
        amplitudes(linear(float("inf")), batches(x, y))


def test_a_network_that_does_not_see_its_images_is_refused():
    class Blind(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3, dtype=x.dtype)

    with pytest.raises(ValueError, match="no gradient in its images"):
        amplitudes(Blind(), batches(*images()))


# --- bins ---


def test_the_papers_bins():
    assert pytest.approx((0, 1e-40, 1e-35, 1e-30, 1e-25, 1e-20, 1e-15, 1e-10, 1e-5, 1e-3, 1), rel=1e-12) == BINS
    assert len(NAMES) == len(BINS) - 1
    values = np.array([0, 5e-324, 1e-41, 3e-38, 1e-12, 2e-4, 2e-3, 0.5, 7.0])
    assert counts(values).tolist() == [3, 1, 0, 0, 0, 0, 1, 0, 1, 3]
    assert (NAMES[1], NAMES[6], NAMES[8]) == ("1e-40..1e-35", "1e-15..1e-10", "1e-5..1e-3")


@given(arrays(float, st.integers(1, 30), elements=st.floats(0, 10)))
def test_shares_are_of_all_images(values):
    found = shares(values)
    assert found.shape == (10,)
    assert found.sum() == pytest.approx(1)


def test_records_have_sizes_and_intervals():
    values = np.array([1e-50, 1e-12, 1e-12, 0.2])
    mean, median, *binned = records(values, 1.5)
    assert (mean.metric, mean.value, mean.n) == ("mean amplitude of probabilities", values.mean(), 4)
    assert (median.metric, median.value, median.n) == ("median amplitude of probabilities", 1e-12, 4)
    assert {r.metric: r.value for r in binned if r.value} == {
        "amplitude of probabilities < 1e-40": 0.25,
        "amplitude of probabilities 1e-15..1e-10": 0.5,
        "amplitude of probabilities ≥ 1e-3": 0.25,
    }
    assert all(r.low <= r.value <= r.high and r.n == 4 for r in (mean, median, *binned))


def test_the_table_shows_temperatures_side_by_side():
    text = printed(table({"T = 1": np.array([0.1, 0.1]), "T = 100": np.array([1e-60, 1e-12])}))
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["< 1e-40"]] == ["·", "50.0"]
    assert [cell.strip() for cell in rows["≥ 1e-3"]] == ["100.0", "·"]
    assert [cell.strip() for cell in rows["median"]] == ["0.1", "5e-13"]
    assert [cell.strip() for cell in rows["images"]] == ["2", "2"]


# --- heat map ---


def test_the_gradient_of_a_linear_layer():
    """The gradient of the mean cross-entropy is the mean of (p - y) x^T."""
    model, (x, y) = linear(), images()
    flat = x.double().flatten(1)
    p = (flat @ model[1].weight.double().T + model[1].bias.double()).softmax(1)
    gradient = (p - nn.functional.one_hot(y, 3)).T @ flat / len(x)
    assert heat_map(model, batches(x, y)) == {"1": {"1": pytest.approx(float(gradient.abs().mean()), rel=1e-12)}}


def test_layers_go_by_stage_in_the_order_of_the_network():
    found = heat_map(network(), batches(*images(4, (1, 8, 8))))
    assert list(found) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert list(found["layer1"])[:2] == ["0.conv1", "0.conv2"]
    assert len(found["layer2"]) == 5
    assert all(value > 0 for layers in found.values() for value in layers.values())


def test_the_heat_map_does_not_depend_on_the_batches():
    x, y = images(9, (1, 8, 8))
    model = network()
    one, other = heat_map(model, batches(x, y, 9)), heat_map(model, batches(x, y, 2))
    for stage, layers in one.items():
        assert other[stage] == pytest.approx(layers, rel=1e-9)


def test_the_heat_map_sees_gradients_that_float32_would_not():
    """A network that is right beyond all doubt has gradients all the same."""
    model, (x, _) = linear(150.0), images(1)
    y = model(x).argmax(1)
    (found,) = heat_map(model, batches(x, y))["1"].values()
    assert 0 < found < 1e-20


def test_unused_weights_are_left_out():
    class Spare(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x))

    assert list(heat_map(Spare(*linear(), nn.Linear(2, 2)), batches(*images()))) == ["1"]


def test_what_has_no_heat_map_is_refused():
    with pytest.raises(ValueError, match="no layer with weights"):
        heat_map(nn.Flatten(), batches(*images()))
    with pytest.raises(ValueError, match="no images"):
        heat_map(linear(), [])
