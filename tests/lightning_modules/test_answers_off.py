"""Where a teacher's answers cannot be kept, or are never asked for, a fit says so and goes on without a cache."""

from pathlib import Path
from typing import Any

import pytest
from answers_helpers import Photographs, stored
from regime_helpers import build, digits, mlp, trainer
from torch.utils.data import DataLoader

from datamodules import Batch
from lightning_modules import (
    AKD,
    RSLAD,
    AdaAD,
    Distillation,
    FickleTeacher,
    SignalDependentNoise,
    TeacherSource,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class OwnBatches(Photographs):
    """A dataset that does to its images what only it knows."""

    def batch(self, *args: Any, **kwargs: Any) -> Batch:
        batch = super().batch(*args, **kwargs)
        return batch._replace(x=batch.x.sqrt())


@pytest.fixture
def refused(folder, tmp_path):
    def fit(student: Any, says: str, **data: Any) -> None:
        with pytest.warns(UserWarning, match=f"The teacher's answers are not cached: .*{says}"):
            trainer(tmp_path).fit(student, **data or {"datamodule": digits(256)})
        assert not folder.exists()

    return fit


def test_by_a_dataset_with_batches_of_its_own(refused):
    student = build(Distillation, TeacherSource(module=mlp(Photographs.facts)), facts=Photographs.facts, cache=True)
    refused(student, "OwnBatches", datamodule=OwnBatches(augment=True, batch_size=8))


def test_by_loaders_that_number_nothing(mlp_teacher, refused, batch):
    student = build(Distillation, mlp_teacher, cache=True)
    refused(
        student,
        "no datamodules.Images",
        train_dataloaders=DataLoader([batch], collate_fn=lambda batches: batches[0]),
    )


def test_by_a_teacher_who_answers_at_random(wrn_teacher, refused):
    noise = [SignalDependentNoise(0.1), FickleTeacher()]
    refused(build(Distillation, wrn_teacher, noise=noise, cache="ahead"), "FickleTeacher")


@pytest.mark.parametrize(
    ("regime", "options"),
    [(AKD, {}), (AKD, {"alpha": 0.0, "teacher_sees": "clean"}), (AdaAD, {}), (Distillation, {"alpha": 0.0})],
)
def test_where_nothing_clean_is_asked(regime, options, mlp_teacher, refused):
    refused(build(regime, mlp_teacher, cache=True, **options), f"{regime.__name__} asks it about no clean images")


@pytest.mark.parametrize(
    ("regime", "options"), [(AKD, {"teacher_sees": "clean"}), (AdaAD, {"alpha": 0.5}), (RSLAD, {"alpha": 0.0})]
)
def test_but_not_where_something_is(regime, options, mlp_teacher, folder, tmp_path):
    trainer(tmp_path).fit(build(regime, mlp_teacher, cache=True, **options), datamodule=digits(32))
    assert int(stored(folder, digits())[1].sum()) == 96


def test_by_default(mlp_teacher, folder, tmp_path):
    trainer(tmp_path).fit(build(Distillation, mlp_teacher), datamodule=digits(256))
    assert not folder.exists()


def test_a_wrong_word_is_refused(mlp_teacher):
    with pytest.raises(ValueError, match="cache must be true, false or ahead, got 'always'"):
        build(Distillation, mlp_teacher, cache="always")
