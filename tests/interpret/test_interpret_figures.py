"""Every picture of the package is written, holds all its text inside, and leaves no state of pyplot behind."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from figure_helpers import assert_placed
from torch import nn

from interpret.calibration import Answers
from interpret.charts import layer_heat_maps, reliability_diagrams, sensitivity_histogram, violins
from interpret.figures import _unit, attack_pair, attribution_grid, model_row, probability, wrapped
from interpret.plane import decision_maps
from networks import Facts

GREY = Facts(classes=3, channels=1, size=6, mean=(0.5,), std=(0.3,))
COLOUR = Facts(classes=3, channels=3, size=6, mean=(0.5,) * 3, std=(0.3,) * 3, names=("aeroplane", "lorry", "cat"))
POINTS = Facts(classes=3, channels=2, size=1, mean=(0.0,) * 2, std=(1.0,) * 2, box=(-6.0, 6.0))
RNG = np.random.default_rng(0)
FLAVOURS = ["FT_temp1", "FT_tempT", *(f"{s}S_tempT_from_{t}T_temp{u}" for s in "FR" for t in "FR" for u in "1T")]


def assert_readable(figure, path):
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5_000
    assert_placed(figure)


def maps(count, facts, scale=1.0):
    return scale * RNG.normal(size=(count, *facts.shape))


def answers(count=300, power=0.3, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.random(count) ** power
    correct = rng.random(count) < confidence
    return Answers(np.zeros(count, int), correct, confidence, -np.log(confidence))


class Blobs(nn.Module):
    def __init__(self, classes, scale=1.0):
        super().__init__()
        angle = torch.arange(classes) * 2 * torch.pi / classes
        self.weight = nn.Parameter(scale * torch.stack([angle.cos(), angle.sin()]))

    def forward(self, x):
        return x.flatten(1) @ self.weight


# --- images ---


@pytest.mark.parametrize(("facts", "absolute", "count"), [(GREY, True, 2), (COLOUR, False, 12), (COLOUR, True, 1)])
def test_attribution_grid(facts, absolute, count, drawn, tmp_path):
    images = RNG.random((count, *facts.shape))
    student, teacher = maps(count, facts), maps(count, facts, 1e-30)[:, :1]
    teacher[0] = 0  # an all-zero map stays white
    captions = [f"aeroplane\n{value:.2f}" for value in RNG.random(count)]
    path = tmp_path / "figures" / "grid.png"
    made = attribution_grid(
        images, student, teacher, facts, path, absolute=absolute, captions=captions, title="Integrated Gradients"
    )
    assert made == path
    assert_readable(drawn[0], path)
    shown = [ax.images[0] for ax in drawn[0].axes if ax.images][min(count, 8) :]
    assert len({image.get_clim() for image in shown}) == 1  # one scale for teacher, student and difference


def test_the_difference_is_what_the_student_has_more(drawn, tmp_path):
    student, teacher = np.zeros((2, 1, 1, 6, 6))
    student[..., 0, 0], teacher[..., 5, 5] = 3.0, 7.0
    attribution_grid(student, student, teacher, GREY, tmp_path / "grid.png")
    difference = drawn[0].axes[3].images[0].get_array()
    assert (difference[0, 0], difference[5, 5], np.abs(difference).sum()) == (1, -1, 2)


def test_maps_have_unit_length_however_small_they_are():
    tiny = _unit(1e-300 * np.array([[[[3.0, 0.0], [0.0, -4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]), absolute=False)
    assert tiny[0] == pytest.approx(np.array([[0.6, 0.0], [0.0, -0.8]]))
    assert not tiny[1].any()
    both = np.stack([np.ones((2, 2)), -np.ones((2, 2))])[None]
    assert not _unit(both, absolute=False).any()  # channels are summed
    assert _unit(both, absolute=True) == pytest.approx(np.full((1, 2, 2), 0.5))


@pytest.mark.parametrize("names", [["teacher", "student"], FLAVOURS], ids=["two", "many"])
@pytest.mark.parametrize("absolute", [True, False])
def test_model_row(names, absolute, drawn, tmp_path):
    path = tmp_path / "row.png"
    found = {name: maps(1, GREY)[0] for name in names}
    assert model_row(RNG.random(GREY.shape), found, GREY, path, absolute=absolute, title="Saliency") == path
    assert_readable(drawn[0], path)
    shown = {image.get_clim() for ax in drawn[0].axes[1:] for image in ax.images}
    assert len(shown) == 1
    assert (shown.pop()[0] == 0) == absolute


@pytest.mark.parametrize("facts", [GREY, COLOUR], ids=["grey", "colour"])
def test_attack_pair(facts, drawn, tmp_path):
    image = RNG.random(facts.shape)
    weak, strong = image.copy(), (image + RNG.choice([-0.1, 0.1], facts.shape)).clip(0, 1)
    p = np.array([1 - 2e-6, 1e-6, 1e-6])
    examples = {"PGD-10": (weak, p), "PGD-10 strong": (strong, p[::-1])}
    path = tmp_path / "pair.png"
    assert attack_pair(image, p, examples, 0, facts, path) == path
    assert_readable(drawn[0], path)
    titles = [ax.get_title() for ax in drawn[0].axes]
    assert titles[1] == "no change"
    assert titles[4] == "largest change 0.1"
    colours = [ax.title.get_color() for ax in drawn[0].axes]
    assert (colours[2], colours[5]) == ("black", "firebrick")  # the strong attack alone succeeds


def test_points_are_no_pictures(tmp_path):
    x = np.zeros((1, 2, 1, 1))
    assert attribution_grid(x, x, x, POINTS, tmp_path / "a.png") is None
    assert model_row(x[0], {"a": x[0]}, POINTS, tmp_path / "a.png") is None
    assert attack_pair(x[0], np.ones(3), {"a": (x[0], np.ones(3))}, 0, POINTS, tmp_path / "a.png") is None
    assert not list(tmp_path.iterdir())


def test_long_names_break_where_they_may():
    assert wrapped("FS_tempT_from_FT_tempT") == "FS_tempT from\nFT_tempT"
    assert wrapped("teacher") == "teacher"
    assert wrapped("one_very_long_name_of_a_network").replace("\n", "") == "one_very_long_name_of_a_network"
    assert max(map(len, wrapped("a student without its teacher, T = 40").split("\n"))) <= 17


def test_only_certainty_is_called_1():
    assert [probability(p) for p in (0.5, 0.994, 1 - 2e-3, 1 - 3e-6, 1.0)] == [
        "0.50",
        "0.99",
        "1 - 2e-3",
        "1 - 3e-6",
        "1",
    ]


# --- charts ---


def test_violins(drawn, tmp_path):
    values = {
        "saliency": RNG.beta(8, 3, 300),
        "Integrated Gradients": np.where(RNG.random(300) < 0.2, np.nan, RNG.beta(5, 5, 300)),
        "Grad-CAM": np.ones(300),  # of a model against itself
        "Guided Grad-CAM": np.full(300, np.nan),
    }
    floors = {m: {"shifted images": 0.3, "untrained student": 0.4, "student without teacher": 0.6} for m in values}
    path = violins(values, floors, tmp_path / "violin.png", "absolute cosine")
    assert_readable(drawn[0], path)
    labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert labels[0] == "saliency\nn = 300"
    assert labels[1] == f"Integrated Gradients\nn = {(~np.isnan(values['Integrated Gradients'])).sum()} of 300"
    assert labels[3] == "Guided Grad-CAM\nn = 0 of 300"
    assert drawn[0].axes[0].get_ylim() == (0, 1.02)


def test_negative_floors_are_in_the_picture(drawn, tmp_path):
    path = violins({"saliency": RNG.random(50)}, {"saliency": {"shifted images": -0.3}}, tmp_path / "violin.png")
    assert_readable(drawn[0], path)
    assert drawn[0].axes[0].get_ylim()[0] < -0.3


def test_reliability_diagrams(drawn, tmp_path):
    said = {"student": answers(), "teacher": answers(seed=1, power=0.1)}
    path = reliability_diagrams(said, tmp_path / "reliability.png")
    assert_readable(drawn[0], path)
    assert f"ECE {said['student'].ece:.3f}" in drawn[0].axes[0].get_title()


@pytest.mark.parametrize(("count", "kind"), [(1, ""), (3, ""), (9, ""), (6, ", dropout")])
def test_sensitivity_histogram(count, kind, drawn, tmp_path):
    amplitudes = {f"T = {10 * t + 1}{kind}": 10.0 ** RNG.uniform(-60, 0, 200) for t in range(count)}
    path = sensitivity_histogram(amplitudes, tmp_path / "sensitivity.png")
    assert_readable(drawn[0], path)
    heights = [bar.get_height() for bar in drawn[0].axes[0].patches]
    assert sum(heights) == pytest.approx(100 * count)


@pytest.mark.parametrize("layers", [1, 5, 13])
def test_layer_heat_maps(layers, drawn, tmp_path):
    def stages(values):
        whole = {f"{i}.conv": float(v) for i, v in enumerate(values)}
        return {"conv1": {"conv1": 0.01}, "layer1": whole, "fc": {"fc": 0.0}}

    maps = {"ResNet-18": stages(10.0 ** RNG.uniform(-8, 0, layers)), "Tf-KD reg": stages(np.full(layers, 1e-3))}
    path = layer_heat_maps(maps, tmp_path / "heat.png")
    assert_readable(drawn[0], path)
    assert len({ax.images[0].get_clim() for ax in drawn[0].axes if ax.images}) == 1


def test_a_heat_map_of_one_value(drawn, tmp_path):
    path = layer_heat_maps({"linear": {"fc": {"fc": 0.5}}}, tmp_path / "heat.png")
    assert_readable(drawn[0], path)


# --- plane ---


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_decision_maps(classes, drawn, tmp_path):
    points = torch.from_numpy(RNG.uniform(-5, 5, (60, 2, 1, 1))).float()
    labels = torch.from_numpy(RNG.integers(0, classes, 60))
    teacher = {f"T = {t}": Blobs(classes, t) for t in (1, 10, 40)} | {"T = 1, dropout": Blobs(classes)}
    rows = {"teacher": teacher, "student": {"T = 10": Blobs(classes, 9.0)}}
    names = [f"class {c}" for c in range(classes)]
    path = decision_maps(
        rows, (-6, 6), tmp_path / "map.png", points=points, labels=labels, names=names, eps=0.5, size=60
    )
    assert_readable(drawn[0], path)
    panels = [ax for ax in drawn[0].axes if ax.images]
    assert [ax.get_title() for ax in panels] == [*teacher, "T = 10"]
    assert drawn[0].axes[4].get_ylabel() == "student"  # also where its first column is empty
    assert panels[0].images[0].get_extent() == [-6, 6, -6, 6]


def test_one_bare_map(drawn, tmp_path):
    path = decision_maps({"network": {"T = 1": Blobs(3)}}, (-6, 6), tmp_path / "map.png", size=60)
    assert_readable(drawn[0], path)


def test_a_network_of_one_decision_is_drawn_too(drawn, tmp_path):
    path = decision_maps({"network": {"T = 1": Blobs(3, 0.0)}}, (-6, 6), tmp_path / "map.png", size=60)
    assert_readable(drawn[0], path)


def test_boxes_need_points_and_points_labels(tmp_path):
    rows = {"network": {"T = 1": Blobs(3)}}
    with pytest.raises(ValueError, match=r"Boxes of radius 0\.5 need points"):
        decision_maps(rows, (-6, 6), tmp_path / "map.png", eps=0.5)
    with pytest.raises(ValueError, match="4 points came with 3 labels"):
        decision_maps(rows, (-6, 6), tmp_path / "map.png", points=torch.zeros(4, 2), labels=[0, 1, 2])


def test_drawings_can_be_vectors(tmp_path):
    path = sensitivity_histogram({"T = 1": np.array([0.1])}, tmp_path / "sensitivity.pdf")
    assert path.read_bytes().startswith(b"%PDF")


def test_no_setting_of_matplotlib_is_moved(tmp_path):
    before = dict(mpl.rcParams)
    sensitivity_histogram({"T = 1": np.array([0.1])}, tmp_path / "sensitivity.png")
    assert dict(mpl.rcParams) == before
