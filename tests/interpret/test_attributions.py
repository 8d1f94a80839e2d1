"""Attributions: identities, other implementations, what they leave alone, and what they refuse."""

from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from attribution_helpers import (
    CONVOLUTIONAL,
    NETWORKS,
    Counting,
    Linear,
    Small,
    gradient,
    guided_gradient,
    images,
    network,
    numpy_cam,
    targets,
    untouched,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from interpret import (
    GradCAM,
    GuidedGradCAM,
    IntegratedGradients,
    Method,
    Saliency,
    SmoothGrad,
    attribute,
    explain,
)
from networks import Network

DOUBLE = torch.float64
GRADIENTS: list[Method] = [Saliency(), IntegratedGradients(steps=3), SmoothGrad(samples=2)]
EVERY: list[Method] = [*GRADIENTS, GradCAM(), GuidedGradCAM()]
SLOW = {"ResNet18", "MobileNetV2"}
gradient_networks = pytest.mark.parametrize("name", NETWORKS)
costly = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS]
)
convolutional_networks = pytest.mark.parametrize("name", CONVOLUTIONAL)


def last_stage(model: Network) -> nn.Module:
    return list(model.stages().values())[-1]


@costly
def test_saliency_is_what_finite_differences_find(name: str) -> None:
    model, x, target = network(name, DOUBLE), images(2, dtype=DOUBLE), targets(2)
    step = 1e-7 * torch.eye(x[0].numel(), dtype=DOUBLE).view(-1, *x[0].shape)
    expected = []
    with torch.no_grad():
        for image, label in zip(x, target, strict=True):
            rise = model(image + step)[:, label] - model(image - step)[:, label]
            expected.append((rise / 2e-7).view_as(image))
    assert_close(Saliency()(model, x, target).values, torch.stack(expected), rtol=1e-4, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.floats(1e-3, 1e3))
def test_scaled_logits_scale_the_maps_alone(scale: float) -> None:
    model, x, target = network("DefensiveCNN"), images(), targets()
    head = model.fc
    before = attribute(model, x, target, EVERY)
    with torch.no_grad():
        head.weight *= scale
        head.bias *= scale
    for name, maps in attribute(model, x, target, EVERY).items():
        rows = before[name].values.double().flatten(1), maps.values.double().flatten(1)
        defined = rows[0].norm(dim=1) > 0
        cosine = F.cosine_similarity(*rows, eps=1e-30)[defined]
        assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-5)
        factor = scale**2 if name == "Guided Grad-CAM" else scale  # a product of two gradients
        assert_close(rows[1], factor * rows[0], rtol=1e-3, atol=1e-4 * factor)


def test_a_linear_model_has_closed_forms() -> None:
    x, target = images(4, dtype=DOUBLE), targets(4)
    model = Linear(x[0].shape, DOUBLE)
    maps = attribute(model, x, target, [Saliency(), IntegratedGradients(steps=2), SmoothGrad(samples=3)])
    weight = model.weight[target]
    assert_close(maps["Saliency"].values, weight)
    assert_close(maps["SmoothGrad"].values, weight)
    assert_close(maps["Integrated Gradients"].values, weight * x, rtol=1e-6, atol=1e-9)
    assert maps["Integrated Gradients"].error is not None
    assert float(maps["Integrated Gradients"].error.max()) < 1e-6


@costly
def test_integrated_gradients_sum_to_the_rise_within_the_error_they_report(name: str) -> None:
    model, x, target = network(name, DOUBLE), images(dtype=DOUBLE), targets()
    with torch.no_grad():
        rise = (model(x) - model(torch.zeros_like(x)))[range(3), target]
    missed = []
    for steps in (2, 60):
        maps = IntegratedGradients(steps)(model, x, target)
        assert maps.error is not None
        assert maps.error.shape == (3,)
        missed.append((maps.values.flatten(1).sum(1) - rise).abs())
        assert_close(missed[-1], maps.error * rise.abs(), rtol=1e-6, atol=1e-9)
    assert float(missed[1].mean()) < 0.2 * float(missed[0].mean())


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_integrated_gradients_are_a_mean_over_midpoints_in_chunks_of_any_size(chunk: int) -> None:
    model, x, target = network("WideResNet", DOUBLE), images(5, dtype=DOUBLE), targets(5)
    mean = sum(gradient(model, (step + 0.5) / 6 * x, target) for step in range(6)) / 6
    assert_close(IntegratedGradients(6, chunk)(model, x, target).values, mean * x, rtol=1e-5, atol=1e-8)


def test_integrated_gradients_come_in_passes_of_at_most_a_chunk() -> None:
    sizes = []

    class Noting(Linear):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    x = images(25)
    IntegratedGradients(10, chunk=20)(Noting(x[0].shape), x, targets(25))
    assert sorted(sizes) == sorted([25, 1, *[20] * 10, *[20, 20, 10]])


def test_an_image_whose_logit_is_that_of_black_has_no_finite_error() -> None:
    x = torch.cat([images(1), torch.zeros_like(images(1))])
    error = IntegratedGradients()(Linear(x[0].shape), x, targets(2)).error
    assert error is not None
    assert error.isfinite().tolist() == [True, False]


@convolutional_networks
def test_grad_cam_is_what_numpy_computes_from_hooks(name: str) -> None:
    model, x, target = network(name, size=16), images(size=16), targets()
    values = GradCAM()(model, x, target).values
    assert values.shape == (3, 1, 16, 16)
    expected = numpy_cam(model, last_stage(model), x, target)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_grad_cam_of_a_network_for_large_images() -> None:
    model, x, target = network("TrafficSignCNN", size=128), images(size=128), targets()
    expected = numpy_cam(model, last_stage(model), x, target)
    values = GradCAM()(model, x, target).values
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_grad_cam_of_named_layers_beside_that_of_the_last_stage() -> None:
    model, x, target = network("ResNet18"), images(), targets()
    maps = attribute(model, x, target, [GradCAM("layer2.0"), GradCAM(), GradCAM("layer4"), Saliency()])
    assert list(maps) == ["Grad-CAM layer2.0", "Grad-CAM", "Grad-CAM layer4", "Saliency"]
    assert torch.equal(maps["Grad-CAM"].values, maps["Grad-CAM layer4"].values)
    expected = numpy_cam(model, model.layer2[0], x, target)
    np.testing.assert_allclose(maps["Grad-CAM layer2.0"].values.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_grad_cam_of_a_network_that_writes_into_its_stages_output() -> None:
    class InPlace(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.end(self.second(self.first(x))).relu_().mean((2, 3)))

    model, x, target = InPlace(F.relu), images(), targets()
    values = GradCAM()(model, x, target).values
    with torch.no_grad():
        output = model.second(model.first(x))
    expected = (output * (model.head.weight[target][:, :, None, None] * (output > 0) / 64).mean((2, 3), True)).sum(1)
    assert_close(values[:, 0], expected.relu())


@convolutional_networks
def test_guided_grad_cam_is_that_of_a_network_with_guided_relus(name: str) -> None:
    model, x, target = network(name), images(), targets()
    expected = guided_gradient(model, x, target).numpy() * numpy_cam(model, last_stage(model), x, target)
    values = GuidedGradCAM()(model, x, target).values.numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 0


@convolutional_networks
def test_captum_finds_the_same(name: str) -> None:
    model, x, target = network(name), images(), targets()
    stage, steps = last_stage(model), {"n_steps": 3, "method": "riemann_middle"}
    cam = captum.attr.LayerGradCam(model, stage).attribute(x, target, relu_attributions=True)
    guided = captum.attr.GuidedGradCam(model, stage)
    expected = {
        "Saliency": captum.attr.Saliency(model).attribute(x, target, abs=False),
        "Integrated Gradients": captum.attr.IntegratedGradients(model).attribute(x, target=target, **steps),
        "Grad-CAM": captum.attr.LayerAttribution.interpolate(cam, (8, 8), interpolate_mode="bilinear"),
        "Guided Grad-CAM": guided.attribute(x, target, interpolate_mode="bilinear"),
    }
    for method, maps in attribute(model, x, target, EVERY).items():
        if method in expected:
            scale = float(expected[method].abs().max())
            assert_close(maps.values, expected[method], rtol=1e-3, atol=1e-4 * scale)


def test_a_relu_module_used_twice_is_guided_at_both_places() -> None:
    class Twice(Small):
        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.first(x))
            return self.head(self.end(self.relu(self.second(x))).mean((2, 3)))

    model, x, target = Twice(F.relu), images(), targets()
    cam = GradCAM()(model, x, target).values
    expected = guided_gradient(model, x, target) * cam
    assert_close(GuidedGradCAM()(model, x, target).values, expected)
    assert not torch.allclose(expected, gradient(model, x, target) * cam, rtol=0.1)


@pytest.mark.parametrize("inplace", [False, True])
def test_what_else_reads_or_overwrites_a_relus_input_is_guided_by_the_definition(inplace: bool) -> None:
    class Early(Small):
        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            z = self.early(z) if inplace else self.early(z) - 2 * z
            return self.head(self.end(self.relu(self.second(z))).mean((2, 3)))

    model, x, target = Early(F.relu), images(), targets()
    model.early = nn.ReLU(inplace)
    z = model.first(x).detach()
    inner = (z.relu() if inplace else z.relu() - 2 * z).requires_grad_()
    end = model.second(inner)
    at_end = (model.head.weight[target][:, :, None, None] / 64).clamp_min(0) * (end > 0)
    (at_inner,) = torch.autograd.grad(end, inner, at_end)
    at_z = at_inner.clamp_min(0) * (z > 0) - (0 if inplace else 2 * at_inner)
    expected = F.conv_transpose2d(at_z, model.first.weight, padding=1).detach()
    assert_close(GuidedGradCAM()(model, x, target).values, expected * GradCAM()(model, x, target).values)


@gradient_networks
def test_smoothgrad_without_noise_is_saliency(name: str) -> None:
    model, x, target = network(name), images(), targets()
    maps = attribute(model, x, target, [Saliency(), SmoothGrad(samples=3, sigma=0.0)])
    assert_close(maps["SmoothGrad"].values, maps["Saliency"].values, rtol=1e-3, atol=1e-5)


class Quadratic(nn.Module):
    """Logits ``c |x|^2 / 2`` for class ``c``: the gradient is ``c x``."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().flatten(1).sum(1)[:, None] * torch.arange(5)


def test_smoothgrad_averages_over_normal_noise_of_its_deviation() -> None:
    x, samples, sigma = images(2, size=64), 9, 0.2
    noise = (
        SmoothGrad(samples, sigma)(Quadratic(), x, torch.tensor([1, 2])).values / torch.tensor([1, 2]).view(-1, 1, 1, 1)
        - x
    )
    deviation = sigma / samples**0.5
    assert float(noise.mean().abs()) < 4 * deviation / noise.numel() ** 0.5
    assert float(noise.std()) == pytest.approx(deviation, rel=0.03)
    assert float((noise[0] * noise[1]).mean().abs()) < 4 * deviation**2 / noise[0].numel() ** 0.5


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_smoothgrads_noise_depends_on_the_image_alone(chunk: int) -> None:
    x, target = images(5), torch.ones(5, dtype=torch.long)
    whole = SmoothGrad(4, 0.3)(Quadratic(), x, target).values
    parts = [SmoothGrad(4, 0.3, chunk)(Quadratic(), part, target[: len(part)]).values for part in x.flip(0).split(2)]
    assert_close(torch.cat(parts).flip(0), whole)


@convolutional_networks
def test_methods_together_find_what_each_finds_alone(name: str) -> None:
    model, x, target = network(name), images(), targets()
    together = attribute(model, x, target, EVERY)
    assert list(together) == [method.name for method in EVERY]
    for method in EVERY:
        alone = method(model, x, target)
        assert_close(together[method.name].values, alone.values)
        assert (alone.error is None) == (method.name != "Integrated Gradients")


@pytest.mark.parametrize(
    ("methods", "passes"),
    [
        ([], (1, 0)),
        ([Saliency()], (1, 1)),
        ([Saliency(), GradCAM()], (1, 1)),
        ([Saliency(), GradCAM(), GuidedGradCAM(), GradCAM("model.layer2")], (1, 2)),
        ([GuidedGradCAM()], (1, 2)),
    ],
)
def test_methods_share_their_passes(methods: list[Method], passes: tuple[int, int]) -> None:
    model = Counting(network("ResNet18"))
    explain(model, images(), targets(), methods)
    assert (model.forwards, model.backwards) == passes


@costly
def test_without_a_target_the_predicted_class_is_explained(name: str) -> None:
    model, x = network(name), images()
    with torch.no_grad():
        logits = model(x)
    explained = explain(model, x, None, GRADIENTS)
    assert_close(explained.logits, logits)
    assert torch.equal(explained.target, logits.argmax(1))
    for key, maps in attribute(model, x, logits.argmax(1), GRADIENTS).items():
        assert torch.equal(maps.values, explained.maps[key].values)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_maps_have_the_images_shape_and_carry_no_graph(dtype: torch.dtype) -> None:
    maps = attribute(network("WideResNet", dtype), images(dtype=dtype), targets(), EVERY)
    for name, each in maps.items():
        assert each.values.shape == (3, 1 if name == "Grad-CAM" else 2, 8, 8)
        assert each.values.dtype == dtype
        assert not each.values.requires_grad


def test_points_of_the_plane_are_explained_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    x, target = torch.randn(6, 2, 1, 1), torch.arange(6) % 3
    maps = attribute(model, x, target, GRADIENTS)
    assert_close(maps["Saliency"].values, gradient(model, x, target))
    assert {each.values.shape for each in maps.values()} == {(6, 2, 1, 1)}


def trained(model: Network) -> Network:
    """A network in the midst of training: modes mixed, gradients stored, something frozen, a hook of its own."""
    model.train()
    model.normalise.eval()
    next(model.parameters()).requires_grad_(False)
    model(images()).sum().backward()
    model.register_forward_hook(lambda module, args, output: None)
    return model


@costly
def test_the_model_and_the_images_are_left_as_they_were(name: str) -> None:
    model, x, target = trained(network(name)), images(), targets()
    before = x.clone()
    with untouched(model):
        maps = attribute(model, x, target, EVERY if name in CONVOLUTIONAL else GRADIENTS)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert_close(maps["Saliency"].values, gradient(model.eval(), x, target), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fail_at", range(1, 9))
def test_the_model_is_left_as_it_was_after_an_exception(fail_at: int) -> None:
    model = Counting(trained(network("DefensiveCNN")), fail_at)
    methods = [*EVERY[:1], IntegratedGradients(3, chunk=3), SmoothGrad(3, chunk=3), *EVERY[3:]]
    with untouched(model), pytest.raises(RuntimeError, match="out of memory"):
        attribute(model, images(), targets(), methods)
    with untouched(model), pytest.raises(ValueError, match="Targets"):
        attribute(model.model, images(), targets() + 5, methods)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_what_surrounds_the_call_changes_nothing(around: Callable[[], Any]) -> None:
    model, x, target = network("WideResNet"), images(), targets()
    expected = attribute(model, x, target, EVERY)
    with around():
        found = attribute(model, x + 0, target + 0, EVERY)
    for name, maps in found.items():
        assert torch.equal(maps.values, expected[name].values)


RECTIFIED = {
    "F.relu": F.relu,
    "in place": lambda z: F.relu(z, inplace=True),
    "torch.relu": torch.relu,
    "Tensor.relu": lambda z: z.relu(),
    "Tensor.relu_": lambda z: z.relu_(),
    "clamp": lambda z: z.clamp(min=0),
    "clamp_min": lambda z: z.clamp_min(0),
    "threshold": lambda z: F.threshold(z, 0, 0),
    "relu6": F.relu6,
    "nn.ReLU6": nn.ReLU6(),
}


@pytest.mark.parametrize("how", RECTIFIED)
def test_a_guided_method_refuses_what_it_could_not_guide(how: str) -> None:
    model = Small(RECTIFIED[how])
    with untouched(model), pytest.raises(ValueError, match=r"outside nn\.ReLU modules"):
        GuidedGradCAM()(model, images(), targets())
    attribute(model, images(), targets(), [*GRADIENTS, GradCAM()])


def test_a_guided_method_refuses_a_network_without_relu_modules() -> None:
    model = Small(torch.tanh)
    model.relu = nn.Tanh()
    with pytest.raises(ValueError, match=r"Small calls no nn\.ReLU module, .* ask for GradCAM"):
        GuidedGradCAM()(model, images(), targets())


@pytest.mark.parametrize("harmless", [torch.tanh, F.leaky_relu, lambda z: z.clamp(0, 1), lambda z: z.clamp_min(1e-3)])
def test_a_guided_method_lets_other_functions_pass(harmless: Callable[[Tensor], Tensor]) -> None:
    assert GuidedGradCAM()(Small(harmless), images(), targets()).values.isfinite().all()


class Dropping(nn.Module):
    """Dropout that no mode turns off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_a_model_that_draws_in_eval_mode_is_refused(method: Method) -> None:
    with pytest.raises(ValueError, match="Small draws at random in eval mode too, as dropout left active does"):
        method(Small(Dropping()), images(), targets())


def test_dropout_in_train_mode_is_only_turned_off() -> None:
    model, x, target = network("DefensiveCNN"), images(), targets()
    expected = attribute(model, x, target, EVERY)
    for name, maps in attribute(model.train(), x, target, EVERY).items():
        assert torch.equal(maps.values, expected[name].values)


@pytest.mark.parametrize("method", [GradCAM(), GuidedGradCAM()], ids=lambda method: method.name)
def test_grad_cam_refuses_a_network_without_a_convolutional_stage(method: Method) -> None:
    with pytest.raises(ValueError, match=r"MLP has no convolutional stage: .*hidden1, hidden2"):
        method(network("MLP"), images(), targets())
    with pytest.raises(ValueError, match=r"Linear names no stages.*GradCAM\(layer="):
        method(Linear(images()[0].shape), images(), targets())


@pytest.mark.parametrize(
    ("layer", "said"),
    [("nowhere", "no module 'nowhere'.*first, second"), ("head", "no convolutional layer.*came from head")],
)
def test_grad_cam_refuses_a_layer_that_is_no_map(layer: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GradCAM(layer)(Small(torch.tanh), images(), targets())


def test_grad_cam_refuses_a_layer_without_one_map() -> None:
    class Again(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(-x)

    with pytest.raises(ValueError, match="'end' of Again is called 2 times"):
        GradCAM()(Again(torch.tanh), images(), targets())


@pytest.mark.parametrize("target", [[0, 5, 1], [0, -1, 1]])
def test_targets_beyond_the_classes_are_refused(target: list[int]) -> None:
    with pytest.raises(ValueError, match="classes from 0 to 4"):
        Saliency()(network("MLP"), images(), torch.tensor(target))


@pytest.mark.parametrize("target", [torch.zeros(2, dtype=torch.long), torch.zeros(3), torch.zeros(3, 1).long()])
def test_targets_of_another_kind_are_refused(target: Tensor) -> None:
    with pytest.raises(ValueError, match="one int64 class per image"):
        Saliency()(network("MLP"), images(), target)


@pytest.mark.parametrize("x", [torch.rand(3, 128), images().bfloat16(), images()[:0], images().mul(255).byte()])
def test_images_of_another_kind_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"float32 or float64 images \(B, C, H, W\), got"):
        Saliency()(network("MLP"), x, targets(len(x)))


class Answering(nn.Module):
    """Gives any function of the images for logits."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


def test_answers_that_are_no_logits_or_have_no_gradient_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 images gave logits of shape \(3, 2, 8, 8\), expected \(3, classes\)"):
        Saliency()(Answering(lambda x: x), images(), targets())
    with pytest.raises(ValueError, match="logits of Answering have no gradient"):
        Saliency()(Answering(lambda x: x.detach().mean((2, 3))), images(2), targets(2))
    with pytest.raises(ValueError, match="logits of Answering have no gradient"):
        Saliency()(Answering(lambda x: torch.ones(len(x), 5, requires_grad=True)), images(), targets())


def test_methods_of_one_name_and_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="name of its own, got Saliency, Saliency"):
        attribute(network("MLP"), images(), targets(), [Saliency(), Saliency()])
    for wrong in ({"steps": 1}, {"chunk": 0}):
        with pytest.raises(ValueError, match="at least 2 steps"):
            IntegratedGradients(**wrong)
    for wrong in ({"samples": 0}, {"chunk": 0}, {"sigma": -0.1}, {"sigma": float("inf")}, {"sigma": float("nan")}):
        with pytest.raises(ValueError, match="SmoothGrad takes at least"):
            SmoothGrad(**wrong)
