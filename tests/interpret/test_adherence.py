"""Adherence: what is measured, where the controls lie, and what is said of it."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from adherence_helpers import COUNT, Looks, Planted, Real, cut, images, real, tables
from captum import attr
from rich.console import Console
from torch import nn

from attacks.records import Record, write_records
from interpret.adherence import adherence
from interpret.attributions import GradCAM, GuidedGradCAM, IntegratedGradients, Saliency, SmoothGrad
from interpret.measures import MEASURES, bootstrap
from interpret.scores import Adherence, Row

EVERY = [Saliency(), IntegratedGradients(4), GradCAM(), GuidedGradCAM(), SmoothGrad(3)]


def planted(student, teacher, untrained, batches=None, controls=None, **kwargs):
    """The adherence of networks that look where tables say."""
    networks = {name: Looks(table) for name, table in (controls or {}).items()}
    looks = [Looks(table) for table in (student, teacher, untrained)]
    batches = batches or cut(7, len(student))
    return adherence(*looks[:2], batches, [Planted()], untrained=looks[2], controls=networks, **kwargs)


def by_measure(found) -> dict[str, Row]:
    return {row.measure: row for row in found.rows}


def printed(found, width=100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(found.table())
    return capture.get().splitlines()


# --- what is measured ---


def test_a_network_and_itself_score_one_by_every_method_and_measure():
    network = real(0)
    found = adherence(network, network, cut(16), EVERY, untrained=real(1))
    assert list(found.values) == [(method.name, measure) for method in EVERY for measure in MEASURES]
    for row in found.rows:
        assert (row.pair.value, row.pair.low, row.pair.high) == pytest.approx((1, 1, 1), abs=1e-9), row
        assert (row.skill.value, row.skill.low, row.skill.high) == pytest.approx((1, 1, 1), abs=1e-9), row
        assert row.floor.value < 0.99
        assert row.count == COUNT


def test_the_pair_is_measured_on_the_same_images_and_classes():
    """By captum itself, network by network and image by image."""
    student, teacher, untrained = (real(seed).eval() for seed in range(3))
    found = adherence(student, teacher, cut(16), [Saliency()], untrained=untrained)
    x, y, index = images()
    target = teacher(x).argmax(1)
    assert found.index.tolist() == index.tolist()
    assert found.target.tolist() == target.tolist() != y.tolist()
    maps = [attr.Saliency(network).attribute(x, target=target, abs=False) for network in (student, teacher, untrained)]
    for name, measure in MEASURES.items():
        values = found.values["Saliency", name]
        assert list(values) == ["pair", "shifted", "untrained"]
        assert values["pair"].tolist() == pytest.approx(measure(maps[0], maps[1]).tolist(), abs=1e-5)
        assert values["untrained"].tolist() == pytest.approx(measure(maps[2], maps[1]).tolist(), abs=1e-5)
        assert values["shifted"].tolist() == pytest.approx(measure(maps[0], maps[1].roll(-1, 0)).tolist(), abs=1e-5)


def test_the_true_class_is_explained_on_request():
    student, teacher, (x, y, _) = real(0), real(1).eval(), images()
    found = adherence(student, teacher, cut(16), [Saliency()], untrained=real(2), target="label")
    assert found.target.tolist() == y.tolist()
    maps = [attr.Saliency(network.eval()).attribute(x, target=y, abs=False) for network in (student, teacher)]
    expected = MEASURES["signed cosine"](*maps).tolist()
    assert found.values["Saliency", "signed cosine"]["pair"].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_scale_of_the_logits_does_not_matter():
    found = adherence(real(0, scale=1e-6), real(0, scale=50.0), cut(16), EVERY, untrained=real(1))
    for row in found.rows:
        assert row.pair.value == pytest.approx(1, abs=1e-3 if row.measure == "Spearman" else 1e-4), row


@pytest.mark.parametrize("size", [1, 2, 39, 40])
def test_the_batch_size_does_not_matter(size):
    networks = [real(seed).double() for seed in range(4)]
    batches = [[(x.double(), y, index) for x, y, index in cut(each)] for each in (7, size)]
    one, other = (
        adherence(*networks[:2], each, EVERY[:4], untrained=networks[2], controls={"blind": networks[3]})
        for each in batches
    )
    assert one.index.tolist() == other.index.tolist()
    for key, values in one.values.items():
        for name, column in values.items():
            assert column.tolist() == pytest.approx(other.values[key][name].tolist(), abs=1e-9, nan_ok=True), (
                key,
                name,
            )
    for a, b in zip(one.records(), other.records(), strict=True):
        assert a.metric == b.metric
        assert (a.value, a.low, a.high, a.n) == pytest.approx((b.value, b.low, b.high, b.n), abs=1e-7)


def test_the_order_of_the_batches_changes_no_interval_of_the_pair():
    student, teacher, untrained = tables(COUNT, 3)
    batches = cut(7)
    one, other = (by_measure(planted(student, teacher, untrained, each)) for each in (batches, batches[::-1]))
    for measure in MEASURES:
        a, b = (
            bootstrap(found.values["Planted", measure]["pair"])
            for found in (planted(student, teacher, untrained, each) for each in (batches, batches[::-1]))
        )
        assert a == pytest.approx(b, abs=1e-12)
        assert one[measure].pair.value == pytest.approx(other[measure].pair.value, abs=1e-12)


def test_the_seed_decides_the_intervals_alone():
    args = tables(COUNT, 3)
    first, again, other = (by_measure(planted(*args, seed=seed))["SSIM"] for seed in (0, 0, 1))
    assert first == again
    assert first.pair.value == other.pair.value
    assert first.pair.low != other.pair.low
    # The mean's standard error is what the interval is made of.
    assert first.pair.low < first.pair.value < first.pair.high


# --- controls ---


def test_unrelated_maps_score_what_chance_gives_and_their_skill_is_none():
    found = planted(*tables(300, 3), controls={"blind": tables(300, 1, seed=7)[0]})
    rows = by_measure(found)
    for measure, values in ((measure, found.values["Planted", measure]) for measure in MEASURES):
        assert list(values) == ["pair", "shifted", "untrained", "blind"]
        chance = {"absolute cosine": 2 / math.pi, "top-10 % overlap": 6 / 64}.get(measure, 0.0)
        slack = {"absolute cosine": 0.01, "SSIM": 0.05}.get(measure, 0.0)  # of maps of a finite size
        for name, column in values.items():
            error = column.std() / math.sqrt(len(column))
            assert abs(column.mean() - chance) < 3 * error + slack, (measure, name)
        # The floor is the highest of three draws of chance, so the skill is a little below 0.
        assert rows[measure].skill.low < 0 < rows[measure].skill.high + 0.02
        assert abs(rows[measure].skill.value) < 0.05


def test_what_both_look_at_in_every_image_is_no_skill():
    """Student and teacher look at one place, whatever the image: each map is alike, and so are those of others."""
    noise, place = tables(200, 2), tables(1, 1)[0]
    rows = by_measure(planted(place + 0.3 * noise[0], place + 0.3 * noise[1], tables(200, 1, seed=3)[0]))
    for measure, row in rows.items():
        assert row.pair.value > 0.55, measure
        assert row.controls["shifted"].value == pytest.approx(row.pair.value, abs=0.02)
        assert row.controls["untrained"].value < row.pair.value - 0.2
        assert row.floor.value == row.controls["shifted"].value
        assert abs(row.skill.value) < 0.05


def test_what_needs_the_teacher_is_skill():
    """A student halfway between chance and the teacher, and one that is nearer than a blind student."""
    teacher, near, far, untrained = tables(200, 4)
    rows = by_measure(planted(teacher + 0.3 * near, teacher, untrained, controls={"blind": teacher + far}))
    for measure, row in rows.items():
        assert row.floor.value == row.controls["blind"].value == max(c.value for c in row.controls.values())
        assert row.skill.value == pytest.approx((row.pair.value - row.floor.value) / (1 - row.floor.value), abs=1e-12)
        assert 0.2 < row.skill.low < row.skill.value < row.skill.high < 1, measure


def test_a_student_below_its_floor_has_negative_skill():
    teacher, mine = tables(100, 2)
    row = by_measure(planted(mine, teacher, teacher + 0.5 * mine))["signed cosine"]
    assert row.skill.value < row.skill.high < 0
    assert row.floor.value == row.controls["untrained"].value


def test_a_floor_of_one_leaves_no_skill_to_speak_of():
    teacher = tables(20, 1)[0]
    found = planted(teacher, teacher, 2 * teacher)
    for row in found.rows:
        assert row.floor.value == pytest.approx(1, abs=1e-9)
        assert math.isnan(row.skill.value)
    assert not [record for record in found.records() if record.metric.endswith("skill")]
    assert all("–" in line for line in printed(found) if "SSIM" in line)


def test_the_intervals_of_floor_and_skill_are_those_of_a_paired_bootstrap():
    teacher, near, far, untrained = tables(30, 4)
    found = planted(teacher + near, teacher, untrained, controls={"blind": teacher + 1.05 * far})
    row = by_measure(found)["signed cosine"]
    columns = np.stack(list(found.values["Planted", "signed cosine"].values()))
    rng = np.random.default_rng(11)
    means = np.array([columns[:, rng.integers(0, 30, 30)].mean(1) for _ in range(4000)])
    floors = means[:, 1:].max(1)
    skills = (means[:, 0] - floors) / (1 - floors)
    for estimate, drawn in ((row.floor, floors), (row.skill, skills), (row.pair, means[:, 0])):
        expected = np.percentile(drawn, [2.5, 97.5])
        assert (estimate.low, estimate.high) == pytest.approx(expected, abs=0.15 * np.ptp(expected))


def test_pairing_makes_the_skill_certain_where_the_images_are_what_differs():
    """Pair and control are hard on the same images: what is uncertain of both is not uncertain of their ratio."""
    hardness = np.random.default_rng(0).random(100)
    values = {"pair": 1 - 0.5 * hardness, "shifted": 1 - hardness}  # skill 0.5, whatever the images
    found = Adherence(np.arange(100), np.zeros(100), {("Saliency", "SSIM"): values})
    (row,) = found.rows
    assert (row.skill.value, row.skill.low, row.skill.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)
    assert row.pair.high - row.pair.low > 0.03


def test_one_image_has_no_neighbour():
    found = planted(*tables(1, 3))
    for row in found.rows:
        assert math.isnan(row.controls["shifted"].value)
        assert row.floor.value == row.controls["untrained"].value == row.floor.low
    assert "–" in "".join(printed(found))


def test_two_images_are_each_others_neighbours():
    student, teacher, untrained = tables(2, 3)
    found = planted(student, teacher, untrained, cut(1, 2)).values["Planted", "Pearson"]["shifted"]
    assert found.tolist() == pytest.approx(MEASURES["Pearson"](student, teacher.flip(0)).tolist())


# --- what is not defined ---


def test_all_zero_maps_are_counted_and_not_averaged():
    student, teacher, untrained = tables(20, 3)
    student[3] = teacher[5] = teacher[6] = 0
    found = planted(student, teacher, untrained)
    records = {record.metric: record for record in found.records()}
    for row in found.rows:
        values = found.values["Planted", row.measure]
        assert np.isnan(values["pair"]).nonzero()[0].tolist() == [3, 5, 6]
        assert np.isnan(values["shifted"]).nonzero()[0].tolist() == [3, 4, 5]  # teacher 5 and 6 stand beside 4 and 5
        assert (row.pair.n, row.controls["untrained"].n, row.count) == (17, 18, 20)
        kept = [i for i in range(20) if i not in (3, 5, 6)]
        assert row.pair.value == pytest.approx(MEASURES[row.measure](student[kept], teacher[kept]).mean().item())
        defined = records[f"adherence/Planted/{row.measure}/defined"]
        assert (defined.value, defined.n, defined.unit) == (0.85, 20, "")
        assert defined.low < 0.85 < defined.high
    assert sum("all measures are defined on 85.0%" in line for line in printed(found)) == 1


def test_what_is_defined_nowhere_has_no_figure(tmp_path):
    student, teacher, untrained = tables(6, 3)
    found = planted(0 * student, teacher, untrained)
    records = list(found.records())
    assert all(math.isfinite(value) for record in records for value in (record.value, record.low, record.high))
    assert [r.value for r in records if r.metric.endswith("/defined")] == [0.0] * len(MEASURES)
    metrics = {record.metric for record in records}
    assert "adherence/Planted/SSIM" not in metrics
    assert "adherence/Planted/SSIM/skill" not in metrics
    assert "adherence/Planted/SSIM/untrained" in metrics
    write_records(tmp_path, records)
    assert "NaN" not in (tmp_path / "results.jsonl").read_text()
    assert sum("all measures are defined on 0.0%" in line for line in printed(found)) == 1


# --- the figure of the published code ---


def by_hand(student, teacher, signed=True, size=100):
    """The mean over batches of the cosine of all their maps as one vector."""
    cosines = []
    for begin in range(0, len(student), size):
        a, b = (maps[begin : begin + size].double().numpy().ravel() for maps in (student, teacher))
        a, b = (a, b) if signed else (np.abs(a), np.abs(b))
        cosines.append(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return np.mean(cosines)


@pytest.mark.parametrize("size", [1, 32, 100, 250])
def test_the_published_figure_by_hand(size):
    teacher, noise, untrained = tables(250, 3)
    teacher *= torch.linspace(0.1, 10, 250).reshape(-1, 1, 1, 1)  # the loud images make the figure
    found = planted(teacher + noise, teacher, untrained, cut(size, 250), compat="zou2023")
    (row,) = found.rows
    assert (row.method, row.measure) == ("Planted", "zou2023")
    assert row.pair.value == pytest.approx(by_hand(teacher + noise, teacher), abs=1e-12)
    assert row.controls["untrained"].value == pytest.approx(by_hand(untrained, teacher), abs=1e-12)
    assert row.controls["shifted"].value == pytest.approx(by_hand(teacher + noise, teacher.roll(-1, 0)), abs=1e-12)
    assert row.pair.low < row.pair.value < row.pair.high
    assert row.count == row.pair.n == 250


def test_the_published_figures_interval_is_that_of_its_bootstrap():
    teacher, noise, untrained = tables(200, 3)
    teacher = teacher * torch.rand(200, 1, 1, 1, generator=torch.Generator().manual_seed(1)) * 2
    student = teacher + noise
    (row,) = planted(student, teacher, untrained, compat="zou2023").rows
    rng = np.random.default_rng(0)
    drawn = [by_hand(student[rows], teacher[rows]) for rows in rng.integers(0, 200, (600, 200))]
    expected = np.percentile(drawn, [2.5, 97.5])
    assert (row.pair.low, row.pair.high) == pytest.approx(expected, abs=0.12 * np.ptp(expected))


def test_the_published_code_explains_the_true_class_by_absolute_saliency_and_guided_grad_cam():
    student, teacher, (x, y, _) = real(0).eval(), real(1).eval(), images()
    methods = [Saliency(), IntegratedGradients(64), GradCAM(), GuidedGradCAM()]
    found = adherence(student, teacher, cut(16), methods, untrained=real(2), compat="zou2023")
    assert found.target.tolist() == y.tolist()
    assert list(found.values) == [(name, "zou2023") for name in ("Saliency", "Integrated Gradients", "Guided Grad-CAM")]

    def maps(method, **kwargs):
        return [method(network).attribute(x, target=y, **kwargs).detach() for network in (student, teacher)]

    # Captum's own defaults, as the code has them: another quadrature, and Grad-CAM enlarged by nearest neighbours.
    tolerance = {"Saliency": 1e-5, "Integrated Gradients": 0.02, "Guided Grad-CAM": 0.1}
    expected = {
        "Saliency": by_hand(*maps(attr.Saliency)),
        "Integrated Gradients": by_hand(*maps(attr.IntegratedGradients, n_steps=64)),
        "Guided Grad-CAM": by_hand(*maps(lambda network: attr.GuidedGradCam(network, network.second))),
    }
    for row in found.rows:
        assert row.pair.value == pytest.approx(expected[row.method], abs=tolerance[row.method]), row.method
    assert by_hand(*maps(attr.Saliency, abs=False)) < expected["Saliency"] - 0.1
    assert by_hand(*maps(attr.IntegratedGradients), signed=False) > expected["Integrated Gradients"] + 0.1


def test_a_named_layer_stays_named_in_the_published_figure():
    found = adherence(
        real(0), real(1), cut(16), [GradCAM("first"), GuidedGradCAM()], untrained=real(2), compat="zou2023"
    )
    assert [row.method for row in found.rows] == ["Guided Grad-CAM first", "Guided Grad-CAM"]


def test_silent_maps_are_no_part_of_the_published_figure():
    student, teacher, untrained = tables(150, 3)
    teacher[:40] = 0
    teacher[100:] = 0  # the whole second batch
    (row,) = planted(student, teacher, untrained, compat="zou2023").rows
    assert row.pair.value == pytest.approx(by_hand(student[:100], teacher[:100]), abs=1e-12)
    assert (row.pair.n, row.count) == (100, 150)
    (row,) = planted(student, 0 * teacher, untrained, compat="zou2023").rows
    assert math.isnan(row.pair.value)


# --- cost, and what is left alone ---


def test_every_network_explains_each_batch_once():
    student, teacher, untrained, blind = (Looks(table) for table in tables(COUNT, 4))
    done = []
    adherence(
        student, teacher, cut(16), [Planted()], untrained=untrained, controls={"blind": blind}, progress=done.append
    )
    # One pass over a single image says how many classes a network has.
    assert [network.calls for network in (student, teacher, untrained, blind)] == [3 + 1] * 4
    assert done == [16, 32, 40]


def test_batches_may_be_given_once_only_and_some_be_empty():
    student, teacher, untrained = (Looks(table) for table in tables(COUNT, 3))
    batches = cut(16)
    batches.insert(1, tuple(part[:0] for part in batches[0]))
    found = adherence(student, teacher, iter(batches), [Planted()], untrained=untrained)
    assert len(found.index) == COUNT


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_gradients_are_off_and_leaves_the_networks_as_they_were(surrounding):
    networks = [real(seed).train() for seed in range(3)]
    networks[0].first.eval()
    networks[0].head.bias.requires_grad_(False)
    networks[1].head.weight.grad = torch.ones_like(networks[1].head.weight)
    before = [
        ([m.training for m in n.modules()], [(p.clone(), p.requires_grad, p.grad) for p in n.parameters()])
        for n in networks
    ]
    with surrounding():
        batches = [(x.clone(), y.clone(), index.clone()) for x, y, index in cut(16)]
        found = adherence(*networks[:2], batches, EVERY, untrained=networks[2])
    assert found.rows[0].pair.n == COUNT
    for network, (modes, parameters) in zip(networks, before, strict=True):
        assert [module.training for module in network.modules()] == modes
        for parameter, (value, required, gradient) in zip(network.parameters(), parameters, strict=True):
            assert torch.equal(parameter, value)
            assert parameter.requires_grad == required
            assert parameter.grad is gradient
    again = adherence(*networks[:2], cut(16), EVERY, untrained=networks[2])
    assert [replace(r, seconds=0) for r in again.records()] == [replace(r, seconds=0) for r in found.records()]


# --- what is said of it ---


def test_records(tmp_path):
    found = adherence(
        real(0), real(1), cut(16), [Saliency(), IntegratedGradients(4)], untrained=real(2), controls={"blind": real(3)}
    )
    records = list(found.records())
    metrics = [record.metric for record in records]
    assert len(set(metrics)) == len(metrics)
    row = found.rows[0]
    expected = {
        "adherence/Saliency/absolute cosine": (row.pair, "similarity"),
        "adherence/Saliency/absolute cosine/shifted": (row.controls["shifted"], "similarity"),
        "adherence/Saliency/absolute cosine/untrained": (row.controls["untrained"], "similarity"),
        "adherence/Saliency/absolute cosine/blind": (row.controls["blind"], "similarity"),
        "adherence/Saliency/absolute cosine/floor": (row.floor, "similarity"),
        "adherence/Saliency/absolute cosine/skill": (row.skill, "skill"),
    }
    assert metrics[:6] == list(expected)
    for record, (estimate, unit) in zip(records, expected.values(), strict=False):
        assert (record.value, record.low, record.high, record.n) == (
            estimate.value,
            estimate.low,
            estimate.high,
            COUNT,
        )
        assert record.unit == unit
        assert record.low <= record.value <= record.high
    assert metrics[6] == "adherence/Saliency/absolute cosine/defined"
    assert metrics[-2:] == [f"adherence/Integrated Gradients/convergence error/{who}" for who in ("student", "teacher")]
    for record, who in zip(records[-2:], ("student", "teacher"), strict=True):
        assert record.value == np.median(found.errors["Integrated Gradients"][who])
        assert 0 <= record.low <= record.value <= record.high < 1
    assert any(record.low < 0 for record in records)  # no interval is cut at 0
    write_records(tmp_path, records)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [Record(**line) for line in lines] == records


def test_a_relative_error_without_bound_is_left_out_of_its_median():
    errors = {"Integrated Gradients": {"student": np.array([0.1, math.inf, 0.3, math.nan, 0.2]), "teacher": np.ones(1)}}
    found = Adherence(np.arange(5), np.zeros(5), {}, errors)
    student, teacher = found.records()
    assert (student.value, student.n) == (0.2, 3)
    assert (teacher.value, teacher.low, teacher.high) == (1, 1, 1)


def test_the_table_can_be_read_at_100_columns():
    teacher, near, far, untrained = tables(COUNT, 4)
    found = planted(-teacher + near, teacher, untrained, controls={"blind": far})
    lines = printed(found)
    assert max(map(len, lines)) <= 100
    assert "Planted" in [line.strip() for line in lines]
    header = next(line for line in lines if "shifted" in line)
    assert header.split() == [
        "student",
        "[95",
        "%]",
        "shifted",
        "untrained",
        "blind",
        "floor",
        "skill",
        "[95",
        "%]",
    ]
    for row in found.rows:
        (line,) = [line for line in lines if line.strip().startswith(row.measure)]
        controls = " +".join(f"{control.value:.3f}" for control in row.controls.values())
        for part in (str(row.pair), *controls.split(" +"), f"{row.floor.value:.3f}", str(row.skill)):
            assert part in line
    assert "skill = (student - floor) / (1 - floor)" in lines[-1]  # and nothing was defined in part alone


def test_no_figure_is_broken_by_a_long_method_or_control():
    controls = {"trained without the teacher": real(3)}
    found = adherence(
        real(0), real(0, scale=-1.0), cut(16), [IntegratedGradients(4)], untrained=real(2), controls=controls
    )
    lines = printed(found)
    assert max(map(len, lines)) <= 100
    for row in found.rows:
        (line,) = [line for line in lines if line.strip().startswith(row.measure)]
        assert str(row.pair) in line
        assert str(row.skill) in line
    assert "Integrated Gradients, teacher: median convergence error" in "".join(lines)


# --- bad input ---


class Poisoned(Real):
    def forward(self, x):
        return super().forward(x) * torch.where(x[:, :1, 0, 0] > 0.02, torch.nan, 1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"teacher": real(1, classes=7)},
            "The network 'student' tells 4 classes apart, the teacher 7: adherence needs",
        ),
        ({"untrained": real(1, classes=3)}, "The network 'untrained' tells 3 classes apart, the teacher 4"),
        ({"controls": {"blind": real(1, classes=5)}}, "The network 'blind' tells 5 classes apart, the teacher 4"),
        ({"batches": []}, "on no images: give at least one batch"),
        ({"batches": [tuple(part[:0] for part in images())]}, "on no images"),
        ({"methods": []}, "by no attribution method: give at least one"),
        ({"methods": [Saliency(), Saliency()]}, "Every method needs a name of its own, got Saliency, Saliency"),
        ({"controls": {"shifted": real(1)}}, "A control cannot be called 'shifted'"),
        ({"controls": {"skill": real(1)}}, "A control cannot be called 'skill'"),
        ({"target": "student"}, "target is 'teacher' or 'label' and compat None or 'zou2023', got 'student' and None"),
        ({"compat": "zou"}, "got 'teacher' and 'zou'"),
        ({"target": "label", "batches": [(images()[0], torch.full((COUNT,), 9), images()[2])]}, "0 to 3"),
        ({"student": Poisoned()}, "Saliency of the network 'student' is not finite"),
        ({"controls": {"blind": Poisoned()}}, "Saliency of the network 'blind' is not finite"),
        ({"methods": [GradCAM()], "student": nn.Sequential(nn.Flatten(), nn.Linear(128, 4))}, "GradCAM"),
    ],
)
def test_bad_input_is_told_in_one_sentence(changed, message):
    given = {"student": real(0), "teacher": real(1), "batches": cut(16), "methods": [Saliency()], "untrained": real(2)}
    given |= changed
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        adherence(**given)
    assert str(caught.value).rstrip(".").count(". ") == 0
    assert "\n" not in str(caught.value)
