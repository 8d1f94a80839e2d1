"""A teacher never changes, is no part of its student's state, and is refused where it does not fit."""

import copy
import hashlib
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from regime_helpers import (
    DISTILLERS,
    FACTS,
    REGIMES,
    assert_identical,
    build,
    digits,
    every_epoch,
    everything,
    fickle_wrn,
    mlp,
    name,
    pgd,
    trainer,
    wrn,
)
from torch import nn

from lightning_modules import (
    AKD,
    ARD,
    IAD,
    AdaAD,
    Distillation,
    FastARD,
    FickleTeacher,
    FrozenTeacher,
    SignalDependentNoise,
    Swap,
    Teacher,
    TeacherSource,
    TfKDSelf,
)
from lightning_modules.robust_distiller import RobustDistiller
from networks import MLP

EVERY = pytest.mark.parametrize("regime", DISTILLERS, ids=name)


def modes(module):
    return {key: part.training for key, part in module.named_modules()}


CASES = {
    **{name(regime): (regime, {}) for regime in DISTILLERS},
    **{
        f"{name(regime)} with IGDM": (regime, {"igdm": 1.0})
        for regime in DISTILLERS
        if issubclass(regime, RobustDistiller)
    },
    "IAD after its warm-up": (IAD, {"warmup": 0, "alpha": 0.5}),
    "AdaAD with both terms and IGDM": (AdaAD, {"alpha": 0.5, "igdm": 1.0}),
    "AdaAD with batch-norm in train mode": (AdaAD, {"attack": pgd(loss="kl", batchnorm="train")}),
    "AKD shown clean images": (AKD, {"teacher_sees": "clean"}),
    "TfKDSelf with an attack": (TfKDSelf, {"attack": pgd()}),
}


@pytest.mark.parametrize("fickle", [False, True], ids=["", "fickle"])
@pytest.mark.parametrize("case", CASES)
def test_the_teacher_never_changes(case, fickle, wrn_teacher, tmp_path):
    """Not in two epochs, not in validation, not in a resumed fit, not in a test: no weight, no buffer, no mode."""
    fresh = everything(wrn_teacher.load(FACTS).module)
    regime, options = CASES[case]
    options = options | {"noise": [FickleTeacher()] * fickle}
    first = build(regime, wrn_teacher, **options)
    before = everything(first.network)
    watch = TeachersFlags()
    fit = trainer(
        tmp_path, max_epochs=2, val_check_interval=2, limit_train_batches=4, callbacks=[every_epoch(tmp_path), watch]
    )
    fit.fit(first, datamodule=digits(16))
    resumed = build(regime, wrn_teacher, **options)
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=2, callbacks=[watch])
    fit.fit(resumed, datamodule=digits(16), ckpt_path=tmp_path / "epoch=0.ckpt")
    fit.validate(resumed, datamodule=digits(), verbose=False)
    fit.test(resumed, datamodule=digits(), verbose=False)
    wanted = {nn.Dropout} if fickle else set()
    assert len(watch.seen) >= 3 * (8 + 2)
    assert all(seen == (wanted, True) for seen in watch.seen)
    for student in (first, resumed):
        teacher = student.teacher.module
        assert_identical(everything(teacher), fresh)
        assert not torch.equal(everything(student.network)["fc.weight"], before["fc.weight"])
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
        assert {type(part) for part in teacher.modules() if part.training} == wanted


class TeachersFlags(pl.Callback):
    """The types of the teacher's parts in train mode, and whether it is frozen, around every step and validation."""

    def __init__(self):
        self.seen = []

    def look(self, trainer, pl_module, *args):
        teacher = pl_module.teacher.module
        frozen = not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
        self.seen.append(({type(part) for part in teacher.modules() if part.training}, frozen))

    on_train_batch_start = on_before_backward = on_before_optimizer_step = on_train_batch_end = look
    on_validation_batch_end = look


@EVERY
def test_the_teacher_is_no_part_of_the_student(regime, wrn_teacher, tmp_path):
    student = build(regime, wrn_teacher)
    theirs = {id(value) for value in [*student.teacher.module.parameters(), *student.teacher.module.buffers()]}
    fit = trainer(tmp_path)
    fit.fit(student, datamodule=digits())
    assert not any(isinstance(part, type(student.teacher.module)) for part in student.modules())
    assert not theirs & {id(value) for value in [*student.parameters(), *student.buffers()]}
    assert not theirs & {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert all(key.startswith("network.") for key in student.state_dict())
    fit.save_checkpoint(tmp_path / "student.ckpt")
    checkpoint = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert {f"network.{key}" for key in student.network.state_dict()} == set(checkpoint["state_dict"])
    digest = hashlib.sha256(Path(wrn_teacher.checkpoint).read_bytes()).hexdigest()
    assert checkpoint["teacher"] == {"sha256": digest, "origin": wrn_teacher.checkpoint}
    if regime is not FastARD:  # whose perturbation is as large as a batch
        assert (tmp_path / "student.ckpt").stat().st_size < 60_000 < Path(wrn_teacher.checkpoint).stat().st_size


def test_the_students_modes_do_not_reach_the_teacher(wrn_teacher):
    student = build(Distillation, wrn_teacher)
    before = modes(student.teacher.module)
    student.eval()
    student.train()
    student.requires_grad_(True)
    student.double()
    assert modes(student.teacher.module) == before
    assert not any(parameter.requires_grad for parameter in student.teacher.module.parameters())
    assert next(student.teacher.module.parameters()).dtype == torch.float32


def test_a_teacher_without_its_fit_is_loaded_when_first_asked_for(mlp_teacher):
    student = build(Distillation, TeacherSource(checkpoint="nowhere.pt", network=mlp))
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at nowhere\.pt"):
        student.setup("fit")
    build(Distillation, TeacherSource(checkpoint="nowhere.pt", network=mlp)).setup("test")


# Fickle


def test_fickle_dropout_draws_at_every_forward_and_batch_norm_stays(batch, wrn_teacher):
    student = build(Distillation, wrn_teacher, noise=[FickleTeacher()])
    assert torch.equal(student.teacher(batch.x), student.teacher(batch.x))
    student.setup("fit")
    before = everything(student.teacher.module)
    assert not torch.equal(student.teacher(batch.x), student.teacher(batch.x))
    assert_identical(everything(student.teacher.module), before)
    for part in student.teacher.module.modules():
        assert part.training == isinstance(part, nn.Dropout)


def test_fickle_dropout_is_still_active_in_the_second_epoch_and_after_a_resume(wrn_teacher, tmp_path):
    flags: list[bool] = []

    class Watched(Distillation):
        def on_train_batch_start(self, batch, batch_idx):
            flags.extend(m.training for m in self.teacher.module.modules() if isinstance(m, nn.Dropout))

    first, second = (build(Watched, wrn_teacher, noise=[FickleTeacher()]) for _ in range(2))
    trainer(tmp_path, max_epochs=2, callbacks=[every_epoch(tmp_path)]).fit(first, digits())
    trainer(tmp_path, max_epochs=2).fit(second, digits(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert len(flags) == 9 * 3  # 2 + 1 epochs of 3 batches, 3 dropouts
    assert all(flags)


@pytest.mark.parametrize("dropout", [0.0, None])
def test_a_teacher_without_dropout_cannot_be_fickle(dropout, tmp_path):
    network = wrn if dropout is None else partial(MLP, widths=(4,), dropout=dropout)
    torch.save(network(FACTS).state_dict(), tmp_path / "teacher.pt")
    source = TeacherSource(checkpoint=str(tmp_path / "teacher.pt"), network=network)
    with pytest.raises(ValueError, match=r"teacher\.pt has no dropout, so it cannot be fickle"):
        build(Distillation, source, noise=[FickleTeacher()]).setup("fit")


@pytest.mark.parametrize(
    "noise", [FickleTeacher(), SignalDependentNoise(0.1), Swap(0.1)], ids=lambda n: type(n).__name__
)
@pytest.mark.parametrize("regime", [regime for regime in REGIMES if regime not in DISTILLERS], ids=name)
def test_noise_on_a_teacher_needs_one(regime, noise):
    with pytest.raises(ValueError, match=rf"{type(noise).__name__} disturbs a teacher, and {name(regime)} has none"):
        build(regime, noise=[noise])


# Identity


@EVERY
def test_a_fit_that_resumes_with_another_teacher_is_refused(regime, mlp_teacher, wrn_teacher, tmp_path):
    trainer(tmp_path, callbacks=[every_epoch(tmp_path)]).fit(build(regime, wrn_teacher), digits())
    torch.manual_seed(9)
    torch.save(fickle_wrn(FACTS).state_dict(), tmp_path / "other.pt")
    other = TeacherSource(checkpoint=str(tmp_path / "other.pt"), network=fickle_wrn)
    hashes = [hashlib.sha256(Path(s.checkpoint).read_bytes()).hexdigest()[:12] for s in (wrn_teacher, other)]
    with pytest.raises(ValueError, match=f"another teacher .*{hashes[0]}.*{hashes[1]}.*other.pt"):
        trainer(tmp_path, max_epochs=2).fit(build(regime, other), digits(), ckpt_path=tmp_path / "epoch=0.ckpt")
    # Testing the student's weights asks nothing of the teacher.
    trainer(tmp_path).test(build(regime, other), digits(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)


def test_the_same_teacher_at_another_place_is_the_same_teacher(mlp_teacher, tmp_path):
    trainer(tmp_path, callbacks=[every_epoch(tmp_path)]).fit(build(ARD, mlp_teacher), digits())
    (tmp_path / "moved.ckpt").write_bytes(Path(mlp_teacher.checkpoint).read_bytes())
    moved = TeacherSource(checkpoint=str(tmp_path / "moved.ckpt"), network=mlp)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(build(ARD, moved), digits(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert fit.global_step == 6


def test_a_student_cannot_resume_a_fit_that_had_no_teacher(mlp_teacher, tmp_path):
    trainer(tmp_path, callbacks=[every_epoch(tmp_path)]).fit(build(Teacher), digits())
    with pytest.raises(ValueError, match="teacher"):
        trainer(tmp_path, max_epochs=2).fit(build(ARD, mlp_teacher), digits(), ckpt_path=tmp_path / "epoch=0.ckpt")


# Sources


def test_the_three_sources_agree(batch, mlp_teacher, tmp_path):
    from_run = mlp_teacher.load(FACTS)
    torch.save(from_run.module.state_dict(), tmp_path / "plain.pt")
    from_plain = TeacherSource(checkpoint=str(tmp_path / "plain.pt"), network=mlp).load(FACTS)
    from_module = TeacherSource(module=from_run.module.train().requires_grad_(True)).load(FACTS)
    assert torch.equal(from_run(batch.x), from_plain(batch.x))
    assert torch.equal(from_run(batch.x), from_module(batch.x))
    assert (from_module.origin, from_module.trained_at) == ("MLP", 1.0)
    assert from_module.sha256 == TeacherSource(module=copy.deepcopy(from_module.module)).load(FACTS).sha256
    with torch.no_grad():
        next(from_module.module.parameters()).add_(1)
    assert from_module.sha256 != TeacherSource(module=from_module.module).load(FACTS).sha256
    assert not from_module.module.training
    assert not any(parameter.requires_grad for parameter in from_module.module.parameters())


def test_the_temperature_that_a_teacher_was_trained_at(tmp_path):
    trainer(tmp_path, callbacks=[every_epoch(tmp_path)]).fit(build(Teacher, temperature=20.0), digits())
    assert TeacherSource(checkpoint=str(tmp_path / "epoch=0.ckpt"), network=mlp).load(FACTS).trained_at == 20.0


def test_a_checkpoint_wins_over_a_config(mlp_teacher):
    both = TeacherSource(checkpoint=mlp_teacher.checkpoint, config="configs/absent.yaml", network=mlp)
    assert both.load(FACTS).origin == mlp_teacher.checkpoint


def test_a_missing_teacher_comes_with_the_command_that_trains_it():
    with pytest.raises(FileNotFoundError) as caught:
        TeacherSource(config="configs/at_digits.yaml").load(FACTS)
    message = str(caught.value)
    assert "python main.py fit --config configs/at_digits.yaml" in message
    assert "--model.teacher.checkpoint" in message
    assert "--train_teacher true" in message


def test_no_teacher_at_all():
    with pytest.raises(ValueError, match=r"No teacher: .*teacher\.checkpoint, teacher\.config or teacher\.module"):
        TeacherSource().load(FACTS)


def run_for(facts, folder):
    """A run's checkpoint, for other data than digits."""
    regime = build(Teacher, facts=facts)
    fit = trainer(folder)
    fit.strategy.connect(regime)
    fit.save_checkpoint(folder / "run.ckpt", weights_only=True)
    return TeacherSource(checkpoint=str(folder / "run.ckpt"), network=mlp)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    source = run_for(FACTS.to_dict() | {"classes": 7}, tmp_path)
    with pytest.raises(ValueError, match=r"trained on 7 classes .*, the data has 10 of"):
        source.load(FACTS)


def test_a_teacher_of_other_images_is_refused(tmp_path):
    source = run_for(FACTS.to_dict() | {"size": 12}, tmp_path)
    with pytest.raises(ValueError, match=r"shape \(1, 12, 12\), the data has 10 of shape \(1, 8, 8\)"):
        source.load(FACTS)


def test_a_plain_state_dict_of_other_classes_is_refused(tmp_path):
    seven = type(FACTS)(**FACTS.to_dict() | {"classes": 7})
    torch.save(mlp(seven).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(ValueError, match=r"fc\.weight \(7, 16\) for \(10, 16\)"):
        TeacherSource(checkpoint=str(tmp_path / "seven.pt"), network=mlp).load(FACTS)


def test_a_module_of_other_classes_or_images_is_refused():
    with pytest.raises(ValueError, match=r"returns \(7,\) values per image, the student's data has 10 classes"):
        TeacherSource(module=nn.Sequential(nn.Flatten(), nn.Linear(64, 7))).load(FACTS)
    with pytest.raises(ValueError, match=r"does not accept images of shape \(1, 8, 8\)"):
        TeacherSource(module=nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))).load(FACTS)
    with pytest.raises(ValueError, match=r"does not accept images of shape \(1, 8, 8\)"):
        TeacherSource(module=nn.Conv2d(3, 10, 8)).load(FACTS)


def test_a_module_without_parameters_is_a_teacher(batch):
    """As a scripted or quantised network is, or a wrapper that holds its weights as buffers."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.randn(64, 10))

        def forward(self, x):
            return x.flatten(1) @ self.weight

    teacher = TeacherSource(module=Fixed()).load(FACTS)
    assert teacher(batch.x).shape == (16, 10)


def test_answers_have_no_graph(batch):
    teacher = FrozenTeacher(mlp(FACTS), "", "here", 1.0)
    assert not teacher(batch.x.requires_grad_()).requires_grad
    batch.x.requires_grad_(False)


@pytest.mark.parametrize("regime", [regime for regime in REGIMES if regime not in DISTILLERS], ids=name)
def test_a_regime_without_a_teacher_says_so(regime, tmp_path):
    fit = trainer(tmp_path)
    fit.fit(build(regime), digits())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    assert "teacher" not in torch.load(tmp_path / "last.ckpt", weights_only=True)
