"""The pictures hold the figures that they are of, on scales that say what they should."""

import numpy as np
import pytest
from shift_helpers import Brightness, batches, pictures

from shift import CIFARCLike, corruption_accuracy
from shift.figures import accuracy_map, difference_map, severity_curves


@pytest.fixture(scope="module")
def found():
    networks = {"student": Brightness(), "teacher": Brightness(scale=2)}
    return corruption_accuracy(networks, batches(pictures(8), np.arange(8) % 4), CIFARCLike([1, 5]))


def numbers(ax):
    return np.array([float(text.get_text()) for text in ax.texts]).reshape(-1, 3)


def test_heat_map_writes_every_accuracy(found, drawn, tmp_path):
    path = accuracy_map(found["student"], tmp_path / "new" / "map.png", "student")
    assert path.read_bytes().startswith(b"\x89PNG")
    ax, bar = drawn[0].axes
    assert numbers(ax)[:, 1:] == pytest.approx(np.rint(100 * found["student"].accuracy()))
    assert (numbers(ax)[:, 0] == round(100 * found["student"].clean.correct.mean())).all()
    assert [label.get_text() for label in ax.get_yticklabels()] == [k.replace("_", " ") for k in found["student"].kinds]
    assert "CIFAR-C-like" in ax.get_title()
    assert "10-C" not in ax.get_title()
    assert bar.get_ylim() == (0, 100)


def test_difference_is_on_a_scale_symmetric_about_0(found, drawn, tmp_path):
    difference_map(found["student"], found["teacher"], tmp_path / "map.png")
    ax, bar = drawn[0].axes
    expected = 100 * (found["student"].accuracy() - found["teacher"].accuracy())
    assert numbers(ax)[:, 1:] == pytest.approx(np.rint(expected))
    assert sum(bar.get_ylim()) == 0
    difference_map(found["student"], found["student"], tmp_path / "map.png")
    assert drawn[1].axes[1].get_ylim() == (-1, 1)


def test_curves_go_through_the_records(found, drawn, tmp_path):
    records = {role: list(each.records()) for role, each in found.items()}
    severity_curves(found, records, tmp_path / "curves.png")
    values = {record.metric.rpartition(": ")[2]: record.value for record in records["teacher"]}
    expected = (
        [100 * values["clean"], values["severity 1"], values["severity 5"]],
        [values["ECE clean"], values["ECE at severity 1"], values["ECE at severity 5"]],
        [values["NLL clean"], values["NLL at severity 1"], values["NLL at severity 5"]],
    )
    for ax, curve in zip(drawn[0].axes, expected, strict=True):
        student, teacher = ax.lines
        assert teacher.get_ydata() == pytest.approx(curve)
        assert student.get_xdata().tolist() == [0, 1, 5]
        assert student.get_marker() != teacher.get_marker()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["student", "teacher"]
