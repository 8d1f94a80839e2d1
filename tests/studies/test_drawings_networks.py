"""Figures that look at networks anew: decisions in the plane, maps of one image, gradients."""

import numpy as np
import pytest
import torch
import yaml
from drawing_helpers import DIGITS, RING, by_name, figures, grid, judged, with_network
from figure_helpers import texts
from matplotlib.collections import PathCollection
from torch.nn import functional as F

from datamodules import Digits, ToyRing
from interpret.decision import decision_map, hardness
from interpret.sensitivity import amplitudes, shares
from networks.checkpoint import load_network
from studies.drawings.decisions import SIZE
from studies.drawings.networks import first_images, made
from studies.plan import Planned

RUNS = ["KD at {T}", "plain"]


def network(planned: Planned) -> torch.nn.Module:
    return load_network(planned.folder / "checkpoints" / "last.ckpt").network


@pytest.fixture
def rings(tmp_path):
    """Three runs in the plane, of one seed, with the last weights."""
    found = grid(tmp_path, seeds=[0], checkpoint="last")
    for number, planned in enumerate(found.cells.values()):
        if planned.cell.name != "teacher":
            with_network(planned, ToyRing(), RING, number)
    return found


@pytest.fixture
def digits(tmp_path):
    """Three runs on digits, of one seed, judged under linf 0.1; KD was trained at T."""
    found = grid(tmp_path, seeds=[0], checkpoint="last")
    for number, planned in enumerate(found.cells.values()):
        if planned.cell.name != "teacher":
            folder = judged(planned, [])
            threat = {"class_path": "attacks.Threat", "init_args": {"norm": "linf", "eps": 0.1}}
            (folder / "config.yaml").write_text(yaml.safe_dump({"suite": {"threat": threat}}))
            with_network(planned, Digits(), DIGITS, number, float(planned.cell.axes.get("T", 1)))
    return found


def test_decisions_are_the_networks_own(rings):
    (drawn,) = figures(rings, kind="decisions", columns="T", points=20, runs=["plain", "KD at {T}"])
    planned = [by_name(rings, name)[0] for name in ("plain", "KD at 10", "KD at 40")]
    panels = drawn.figure.axes
    for ax, each in zip(panels, planned, strict=True):
        # Three classes: the picture's channels are the probabilities.
        probabilities = decision_map(network(each), (-6.0, 6.0), SIZE)
        np.testing.assert_allclose(ax.get_images()[0].get_array(), probabilities, atol=1e-6)
        assert sum(len(dots.get_offsets()) for dots in ax.collections if isinstance(dots, PathCollection)) == 20
        hard = hardness(network(each), ToyRing().batch("train").x).share
        assert ax.get_xlabel() == f"p > 0.99: {100 * hard:.0f} %"
    assert [ax.get_title() for ax in panels] == ["", "T = 10", "T = 40"]
    assert [text.get_text() for text in drawn.figure.texts] == ["plain", "KD at …"]
    rows = [round(ax.get_position().y0, 3) for ax in panels]
    assert rows[0] > rows[1] == rows[2]
    assert "20 of 1080 training points" in drawn.caption


def test_rounded_decisions_have_pure_colours_and_boxes(rings):
    said = {"columns": 2, "points": 10, "runs": RUNS}
    (drawn,) = figures(rings, kind="decisions", rounded=True, eps=0.5, **said)
    for ax in drawn.figure.axes:
        assert set(np.unique(ax.get_images()[0].get_array())) <= {0.0, 1.0}
    assert "box ±0.5, two classes" in {text.get_text() for text, _ in texts(drawn.figure)}
    assert "predicted classes as colours" in drawn.alt


def test_a_network_that_has_diverged_costs_no_other_its_figure(rings):
    path = by_name(rings, "plain")[0].folder / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    state["state_dict"] = {key: value * float("nan") for key, value in state["state_dict"].items()}
    torch.save(state, path)
    (drawn,) = figures(rings, kind="decisions", points=0, runs=RUNS)
    assert len(drawn.figure.axes) == 2
    assert "Left out: plain (The network's logits are not finite" in drawn.caption


def test_decisions_need_the_plane(digits):
    with pytest.raises(ValueError, match=r"points in the plane, the runs' images are \(1, 8, 8\)"):
        figures(digits, kind="decisions", runs=RUNS)


@pytest.mark.slow
def test_eighty_decision_maps_are_drawn_in_time(tmp_path):
    from time import monotonic

    runs = [{"name": "{k}, T = {T}", "over": {"k": list(range(20))}, "set": {"model.k": "{k}", "model.T": "{T}"}}]
    found = grid(tmp_path, axes={"T": [10, 40, 70, 100]}, runs=runs, seeds=[0], checkpoint="last")
    for number, planned in enumerate(found.cells.values()):
        with_network(planned, ToyRing(), RING, number)
    begun = monotonic()
    made = figures(found, kind="decisions", columns="T", over={"k": list(range(20))}, runs="{k}, T = {T}")
    assert sum(len(drawn.figure.axes) for drawn in made) == 80
    assert monotonic() - begun < 60  # 10 s on an idle core, with the checks of every text


def test_maps_are_the_gradients_of_the_true_class(digits):
    (drawn,) = figures(digits, kind="attributions", method="Saliency", image=3, runs=RUNS)
    x, y, *_ = Digits().batch("test", torch.tensor([3]))
    image, *tiles = drawn.figure.axes[:4]
    assert image.get_title() == "image"
    for ax, name in zip(tiles, ("KD at 10", "KD at 40", "plain"), strict=True):
        net = network(by_name(digits, name)[0])
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(net(x)[0, y[0]], x)
        expected = gradient.abs()[0].sum(0)
        np.testing.assert_allclose(ax.get_images()[0].get_array(), expected / expected.norm(), rtol=1e-4)
        p, predicted = net(x.detach())[0].softmax(0).max(0)
        title = ax.get_title().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")
        assert title == f"{name}: {predicted}, p = {p:.2f}"
        assert (ax.title.get_color() == "firebrick") == (int(predicted) != int(y))
    assert drawn.caption.startswith(f"Saliency. Maps of the true class, {int(y)},")


def test_one_run_by_several_methods_is_one_figure(digits):
    methods = ["Saliency", "IntegratedGradients"]
    (one,) = figures(digits, kind="attributions", method=methods, runs="plain")
    assert [ax.get_title().replace("\n", " ").partition(":")[0] for ax in one.figure.axes[1:3]] == [
        *("Saliency", "Integrated Gradients"),
    ]
    each = figures(digits, kind="attributions", method=methods, runs="KD at {T}")
    assert [drawn.caption.partition(".")[0] for drawn in each] == ["Saliency", "Integrated Gradients"]


def test_the_image_is_attacked_as_the_run_was_judged(digits):
    attack = {"class_path": "attacks.FGSM"}
    tiles, warm, cold = figures(
        digits, kind="attributions", method="Saliency", runs=["KD at 40", "plain"], attack=attack
    )
    x, y, *_ = Digits().batch("test", torch.tensor([0]))
    for drawn, name, temperatures in ((warm, "KD at 40", (1, 40)), (cold, "plain", (1,))):
        net = network(by_name(digits, name)[0])
        assert f"{name} under linf 0.1" in drawn.caption
        assert len(drawn.figure.axes) == 3 * len(temperatures)
        for row, temperature in enumerate(temperatures):
            x.requires_grad_()
            loss = F.cross_entropy(net(x) / temperature, y)
            (gradient,) = torch.autograd.grad(loss, x)
            expected = (x.detach() + 0.1 * gradient.sign()).clamp(0, 1)
            shown = drawn.figure.axes[3 * row + 2].get_images()[0].get_array()
            np.testing.assert_allclose(shown, expected[0, 0], atol=1e-6)
    assert "no strong version" in cold.caption
    assert "no strong version" not in warm.caption
    assert tiles.caption.startswith("Saliency")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"image": 360}, "one of 360 test images, got image 360"),
        ({"method": "Magic"}, "interpret.Magic is no Method"),
        ({"attack": {"class_path": "attacks.Threat"}}, "is no Attack"),
    ],
)
def test_what_is_no_image_method_or_attack(digits, said, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        figures(digits, **{"kind": "attributions", "method": "Saliency", "runs": RUNS, **said})
    assert "\n" not in str(error.value)


def test_a_method_that_a_network_does_not_allow_is_told(digits):
    (drawn,) = figures(digits, kind="attributions", method="GradCAM", runs="plain")
    assert "plain (MLP has no convolutional stage" in drawn.caption


def test_amplitudes_are_computed_where_that_is_asked_for(digits):
    (drawn,) = figures(digits, kind="sensitivity", images=20, runs="plain")
    expected = shares(amplitudes(network(by_name(digits, "plain")[0]), first_images(Digits(), 20)))
    bars = drawn.figure.axes[0].containers[0]
    np.testing.assert_allclose([bar.get_height() for bar in bars], 100 * expected)
    assert "20 images, one seed" in drawn.caption
    with pytest.raises(ValueError, match="run's own model"):
        figures(digits, kind="sensitivity", images=20, model="teacher", runs="plain")


def test_layers_are_gradients_of_the_mean_loss(digits):
    (drawn,) = figures(digits, kind="layers", images=30, runs=RUNS)
    for ax, name in zip(drawn.figure.axes, ("KD at 10", "KD at 40", "plain"), strict=False):
        net = network(by_name(digits, name)[0]).double()
        batches = first_images(Digits(), 30)
        x, y = torch.cat([x for x, _, _ in batches]), torch.cat([y for _, y, _ in batches])
        F.cross_entropy(net(x.double()), y).backward()
        expected = [w.grad.abs().mean() for w in net.parameters() if w.dim() > 1]
        np.testing.assert_allclose(ax.get_images()[0].get_array().ravel(), expected, rtol=1e-6)
        assert ax.get_title() == name
    assert "30 test images" in drawn.caption


def test_objects_are_made_as_configs_name_them():
    from attacks import PGD
    from attacks.base import Attack

    attack = made(Attack, {"class_path": "attacks.PGD", "init_args": {"steps": 7, "step_size": "2/255"}})
    assert isinstance(attack, PGD)
    assert attack.steps == 7
    with pytest.raises(ValueError, match="is no Attack"):
        made(Attack, {"class_path": "attacks.PGD", "init_args": {"stepz": 7}})
