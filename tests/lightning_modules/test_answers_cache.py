"""Students hear what their teacher would say, rounded to fp16, and it is asked but once."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from answers_helpers import (
    CPU,
    Photographs,
    assert_stored_as_computed,
    opened,
    photographs,
    run,
    stored,
    views_of,
)
from main_helpers import image_folder
from regime_helpers import build, calls, digits, mlp, pgd, trainer, wrn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules import Batch, ImageFolder
from datamodules.augment import VIEWS, shown
from lightning_modules import (
    ARD,
    IAD,
    RSLAD,
    DefensiveDistillation,
    Distillation,
    FastARD,
    InputNoise,
    LabelCorruption,
    SignalDependentNoise,
    Swap,
    TeacherSource,
)
from lightning_modules.answers_cache import open_cache


class Kept(pl.Callback):
    """Keeps what the student hears of every batch, and what its teacher says of the same batch."""

    def __init__(self) -> None:
        self.heard: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.heard.append((pl_module.taught(batch), pl_module.teacher(batch.clean)))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEMPERED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def photographer(tmp_path_factory: pytest.TempPathFactory) -> TeacherSource:
    """A WideResNet for the photographs, as a plain state dict."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("photographer") / "wrn.pt"
    torch.save(wrn(Photographs.facts).state_dict(), path)
    return TeacherSource(checkpoint=str(path), network=wrn)


class TestViews:
    def test_are_numbered_from_the_image_as_it_is(self):
        image = photographs().training_images[0]
        expected = views_of(image)
        assert expected[0].equal(image)
        assert len({view.numpy().tobytes() for view in expected}) == VIEWS == 162
        assert shown(image.expand(162, -1, -1, -1), torch.arange(162)).equal(expected)

    def test_a_batch_says_which_it_shows(self):
        data = photographs()
        index = torch.arange(24)
        plain, drawn = data.batch("train", index), data.batch("train", index, (1, 2))
        assert shown(plain.x, drawn.view).equal(drawn.x)
        assert plain.view.eq(0).all()
        assert len(drawn.view.unique()) > 12
        assert (data.views, photographs(augment=False).views) == (162, 1)


@pytest.mark.parametrize("regime", [Distillation, ARD, RSLAD, FastARD, DefensiveDistillation, IAD])
@pytest.mark.parametrize("cache", [True, "ahead"])
def test_digits_hear_what_is_computed_rounded(regime, cache, mlp_teacher, tmp_path):
    kept = Kept()
    run(regime, mlp_teacher, digits(256), tmp_path, cache=cache, callbacks=[kept])
    assert kept.heard
    for heard, said in kept.heard:  # in the second epoch of other batches than they were asked in
        torch.testing.assert_close(heard, said.half().float(), rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("regime", [Distillation, ARD, RSLAD])
def test_every_view_holds_what_is_computed_rounded(regime, photographer, tmp_path, folder):
    data, kept = photographs(), Kept()
    student, *_ = run(regime, photographer, data, tmp_path, network=wrn, cache=True, callbacks=[kept], epochs=3)
    for number, (heard, said) in enumerate(kept.heard):
        torch.testing.assert_close(heard, said.half().float(), rtol=2**-10, atol=1e-4)
        if number < 2:  # in the first epoch the teacher is asked about the whole batch
            assert heard.equal(said.half().float())
    logits, filled = stored(folder, data)
    assert filled.any(1).nonzero().squeeze(1).equal(data.split_index("train"))
    assert assert_stored_as_computed(logits, filled, data, student.teacher) > 2 * 18


class TestResults:
    """Rounding to 11 bits is all that differs."""

    def test_are_close_on_digits(self, mlp_teacher, tmp_path):
        _, plain, metrics = run(Distillation, mlp_teacher, digits(64), tmp_path)
        _, cached, same = run(Distillation, mlp_teacher, digits(64), tmp_path, cache=True)
        assert cached == pytest.approx(plain, rel=1e-3)
        assert cached != plain
        assert same["val/acc"] == metrics["val/acc"]

    def test_of_ard_are_close_on_digits(self, mlp_teacher, tmp_path):
        """Step by step they are not: the sign of a gradient near zero turns with the last bit."""
        _, _, metrics = run(ARD, mlp_teacher, digits(64), tmp_path)
        _, _, same = run(ARD, mlp_teacher, digits(64), tmp_path, cache=True)
        assert same["train/loss"] == pytest.approx(metrics["train/loss"], rel=1e-2)
        for key in ("val/acc", "val/robust_acc"):
            assert same[key] == pytest.approx(metrics[key], abs=2 / 64)  # two images of the one validation batch

    def test_are_close_on_an_augmented_folder(self, photographer, tmp_path):
        root = image_folder(tmp_path / "images", classes=4, size=32, train=6)
        results = []
        for cache in (False, True):
            data = ImageFolder(str(root), 32, batch_size=8, augment=True, validation=0.25)
            results.append(run(Distillation, photographer, data, tmp_path, network=wrn, cache=cache, epochs=3)[1:])
        (plain, metrics), (cached, same) = results
        assert cached == pytest.approx(plain, rel=1e-3)
        assert cached != plain
        assert same["val/acc"] == metrics["val/acc"]


@pytest.mark.parametrize(
    "noise",
    [[SignalDependentNoise(0.3)], [Swap(1.0, "all", threshold=1.0)], [InputNoise(0.2), LabelCorruption(0.5)]],
    ids=["signal-dependent", "swap", "on the student's side"],
)
def test_noise_acts_on_the_stored_answer(noise, mlp_teacher, tmp_path, folder):
    """The file holds the teacher's word without noise; the student hears it with noise, as without a cache."""
    _, plain, _ = run(Distillation, mlp_teacher, digits(256), tmp_path, noise=noise)
    student, cached, _ = run(Distillation, mlp_teacher, digits(256), tmp_path, noise=noise, cache=True)
    assert cached == pytest.approx(plain, rel=1e-2)  # rounding may make a tie, which a swap sees
    logits, filled = stored(folder, digits())
    said = student.teacher(digits().training_images.float() / 255).half()
    torch.testing.assert_close(logits[filled], said[filled.squeeze(1)], rtol=2**-9, atol=1e-4)


def test_a_full_cache_spares_the_teacher(mlp_teacher, tmp_path):
    """A later student, of whatever seed and temperature, asks of it 16 images before the fit, and nothing in it."""
    data = digits(64)
    asked = []
    for regime, options in [
        (Distillation, {}),
        (Distillation, {"temperature": 20.0, "alpha": 0.5}),
        (ARD, {"attack": pgd(random_start=False)}),
        (RSLAD, {}),
    ]:
        student = build(regime, mlp_teacher, cache=True, **options)
        with calls(student.teacher.module) as answers:
            trainer(tmp_path, max_epochs=2, limit_train_batches=1.0).fit(student, datamodule=data)
        asked.append(sum(map(len, answers)))
    assert asked == [len(data.split_index("train")), 16, 16, 16]


def test_ahead_asks_for_every_view_once(tmp_path, folder):
    data, teacher = photographs(), TeacherSource(module=mlp(Photographs.facts))
    student = build(Distillation, teacher, facts=data.facts, cache="ahead")
    with calls(student.teacher.module) as answers:
        trainer(tmp_path, max_epochs=2, limit_train_batches=1.0).fit(student, datamodule=data)
    assert sum(map(len, answers)) == 18 * 162
    logits, filled = stored(folder, data)
    assert not filled[data.split_index("validation")].any()
    filled[data.split_index("train")[2:]] = False
    assert assert_stored_as_computed(logits, filled, data, student.teacher) == 2 * 162


def test_a_trial_run_does_not_ask_ahead(tmp_path, folder):
    data, teacher = photographs(), TeacherSource(module=mlp(Photographs.facts))
    student = build(Distillation, teacher, facts=data.facts, cache="ahead")
    trainer(tmp_path, fast_dev_run=1).fit(student, datamodule=data)
    assert int(stored(folder, data)[1].sum()) == 8


def test_adversarial_images_are_never_answered_from_the_file(mlp_teacher, tmp_path):
    """With IGDM the teacher is asked about x' and its mirror image in every step, whatever is stored."""
    run(IAD, mlp_teacher, digits(256), tmp_path, cache=True)
    student = build(IAD, mlp_teacher, cache=True, igdm=1.0, warmup=0)
    with calls(student.teacher.module) as answers:
        trainer(tmp_path, limit_train_batches=3).fit(student, datamodule=digits(256))
    assert [len(each) for each in answers] == [16] + [256] * 6


class Waits(TorchDispatchMode):
    """Names the operations that make a device's queue wait for the program."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in ("aten::_local_scalar_dense", "aten::nonzero"):
            self.found.append(function._schema.name)
        return function(*args, **kwargs or {})


def test_a_complete_cache_waits_for_nothing():
    cache = opened(validation=0.9)
    batch = cache.data.batch("train", cache.trained, (0, 1))
    with Waits() as before:
        cache(batch)
    cache.fill(CPU)
    cache.refresh(CPU)
    with Waits() as after:
        cache(batch)
    assert cache.complete
    assert before.found
    assert not after.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bound", [1 << 30, 0], ids=["on the device", "mapped"])
def test_answers_on_a_gpu(bound, monkeypatch):
    monkeypatch.setattr("lightning_modules.answers_cache.ON_DEVICE", bound)
    gpu, data = torch.device("cuda", 0), photographs()
    cache = open_cache(opened().teacher, data, "32-true", gpu)
    batch = data.batch("train", data.split_index("train")[:8].to(gpu), (0, 1))
    cache.refresh(gpu)
    first = cache(batch)
    cache.fill(gpu)
    cache.refresh(gpu)
    torch.cuda.set_sync_debug_mode("error" if bound else "default")
    again = cache(batch)
    torch.cuda.set_sync_debug_mode("default")
    assert again.is_cuda
    assert again.equal(first)
