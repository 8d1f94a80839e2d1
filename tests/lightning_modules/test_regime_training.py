"""Regimes in a real trainer: modes, batch-norm, accumulation, low precision, and losses that are no number."""

import copy
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from regime_helpers import (
    REGIMES,
    Gradients,
    Losses,
    assert_identical,
    build,
    calls,
    cnn,
    digits,
    everything,
    fickle_wrn,
    name,
    pgd,
    trainer,
    wrn,
)
from torch import nn

from attacks import Threat
from lightning_modules import (
    AKD,
    ARD,
    FGSMRS,
    IAD,
    NFGSM,
    RSLAD,
    TRADES,
    AdaAD,
    AdversarialTraining,
    FastARD,
    InputNoise,
    LabelCorruption,
    Regime,
    SelfDistillation,
    SignalDependentNoise,
    Swap,
    Teacher,
    TeacherSource,
)
from lightning_modules.replay import Replayed
from lightning_modules.robust_distiller import RobustDistiller

EVERY = pytest.mark.parametrize("regime", REGIMES, ids=name)
BATCHNORM = pytest.mark.parametrize("batchnorm", ["eval", "train"])
SMALL = Threat("linf", 0.05)
CLEAN_TOO = (TRADES, RSLAD)  # train on an image and on its example


ON_KL = (TRADES, RSLAD, AdaAD)


def attack(regime: type[Regime], **kwargs: Any) -> dict[str, Any]:
    """The attack of a regime that is given one."""
    if issubclass(regime, (RobustDistiller, AdversarialTraining, TRADES)) and not issubclass(regime, (FGSMRS, NFGSM)):
        return {"attack": pgd(loss="kl" if issubclass(regime, ON_KL) else "ce", **kwargs)}
    return {}


def flags(module: nn.Module) -> dict[str, bool]:
    return {
        **{f"mode of {key}": part.training for key, part in module.named_modules()},
        **{f"requires_grad of {key}": p.requires_grad for key, p in module.named_parameters()},
    }


class Flags(pl.Callback):
    """Modes and ``requires_grad`` before and after every batch and around every validation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, bool]] = []

    def look(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen.append(flags(pl_module.network))

    on_train_batch_start = on_train_batch_end = on_before_zero_grad = on_after_backward = look
    on_before_optimizer_step = on_train_epoch_start = on_train_epoch_end = look


@EVERY
@BATCHNORM
def test_modes_are_as_before_after_every_step(regime, batchnorm, wrn_teacher, tmp_path):
    """A batch-norm that its owner froze in eval mode stays frozen, and so does a layer without gradients."""
    student = build(regime, wrn_teacher, network=fickle_wrn, **attack(regime, batchnorm=batchnorm))
    frozen = student.network.block2.layer[0].bn1
    frozen.eval().requires_grad_(False)
    student.network.conv1.requires_grad_(False)
    wanted = flags(student.network)
    assert len(set(wanted.values())) == 2
    before = everything(frozen), student.network.conv1.weight.clone()
    callback = Flags()
    trainer(tmp_path, callbacks=[callback], limit_train_batches=4, val_check_interval=2).fit(student, digits())
    assert len(callback.seen) >= 4 * 4
    assert all(seen == wanted for seen in callback.seen)
    assert_identical(everything(frozen), before[0])
    assert torch.equal(student.network.conv1.weight, before[1])


@EVERY
@BATCHNORM
def test_running_averages_move_by_the_training_forwards_alone(regime, batchnorm, wrn_teacher, tmp_path):
    student = build(regime, wrn_teacher, network=wrn, **attack(regime, batchnorm=batchnorm))
    trainer(tmp_path, limit_train_batches=4, val_check_interval=2).fit(student, digits())
    assert int(student.network.bn1.num_batches_tracked) == 4 * (2 if regime in CLEAN_TOO else 1)
    assert student.network.bn1.running_mean.any()


@BATCHNORM
@pytest.mark.parametrize("regime", [regime for regime in REGIMES if attack(regime)], ids=name)
def test_running_averages_are_those_of_what_the_loss_saw(regime, batchnorm, wrn_teacher, batch):
    student = build(regime, wrn_teacher, network=wrn, **attack(regime, batchnorm=batchnorm)).train()
    twin = copy.deepcopy(student.network)
    with calls(student.network) as outputs:
        seen = []
        student.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
        student.step(batch, 0)
    trained = 2 if regime in CLEAN_TOO else 1
    assert len(outputs) == len(seen)
    twin.train()
    for x in seen[-trained:]:
        twin(x)
    assert_identical(everything(student.network), everything(twin))


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluation_works_in_and_out_of_inference_mode(inference_mode, verb, tmp_path):
    regime = build(AdversarialTraining, network=wrn)
    before = everything(regime.network)
    run = trainer(tmp_path, inference_mode=inference_mode)
    getattr(run, verb)(regime, digits(), verbose=False)
    assert_identical(everything(regime.network), before)
    assert ("val/robust_acc" in run.callback_metrics) == (verb == "validate")


def test_validation_is_the_same_each_time_and_the_clean_figure_is_right(tmp_path):
    regime = build(AdversarialTraining, network=wrn)
    data = digits()
    runs = [trainer(tmp_path, limit_val_batches=1.0) for _ in range(2)]
    figures = [run.validate(regime, data, verbose=False)[0] for run in runs]
    assert figures[0] == figures[1]
    regime.eval()
    batch = data.batch("validation", data.split_index("validation"))
    with torch.no_grad():
        logits = regime(batch.x)
    assert figures[0]["val/acc"] == pytest.approx((logits.argmax(1) == batch.y).float().mean().item())
    assert figures[0]["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, batch.y).item(), rel=1e-5)
    assert figures[0]["val/robust_acc"] <= figures[0]["val/acc"]


@EVERY
def test_predictions_are_probabilities_at_temperature_one(regime, wrn_teacher, tmp_path):
    student = build(regime, wrn_teacher, network=cnn)
    parts = trainer(tmp_path).predict(student, digits())
    found = torch.cat([part["probabilities"] for part in parts])
    data = digits()
    data.setup("test")
    batch = data.batch("test")
    with torch.no_grad():
        expected = student.network.eval()(batch.x).softmax(1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(torch.cat([part["index"] for part in parts]), batch.index)
    assert torch.equal(torch.cat([part["label"] for part in parts]), batch.y)


# Optimiser


@EVERY
def test_the_optimiser_holds_the_students_parameters_and_its_schedule(regime, wrn_teacher, tmp_path):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    student = build(regime, wrn_teacher, scheduler=schedule, scheduler_interval="step")
    run = trainer(tmp_path, limit_train_batches=4)
    run.fit(student, digits())
    (group,) = run.optimizers[0].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in student.parameters()}
    assert {id(p) for p in student.network.parameters()} <= {id(p) for p in group["params"]}
    assert (len(group["params"]) > len([*student.network.parameters()])) == (regime is SelfDistillation)
    assert group["lr"] == pytest.approx(0.05 / 4)


def gradients(regime: Regime, folder: Any, batch_size: int, batches: int, accumulate: int) -> list[dict[str, Any]]:
    callback = Gradients()
    run = trainer(
        folder,
        callbacks=[callback],
        limit_train_batches=batches,
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
    )
    run.fit(regime, digits(batch_size))
    return callback.steps


# A perturbation moves at every batch, and the heads of self-distillation normalise by the batch.
BY_IMAGE = [regime for regime in REGIMES if not issubclass(regime, (Replayed, SelfDistillation))]
NOISE = [LabelCorruption(0.3), LabelCorruption(0.3, fixed=True), InputNoise(0.1)]
TEACHERS_NOISE = [SignalDependentNoise(0.3), Swap(0.5, "all", threshold=0.5)]


@pytest.mark.parametrize("regime", BY_IMAGE, ids=name)
@pytest.mark.parametrize("noisy", [False, True], ids=["", "noise"])
def test_two_accumulated_batches_are_one_of_twice_the_size(regime, noisy, mlp_teacher, tmp_path):
    options: dict[str, Any] = {"alpha": 0.7} if regime in (ARD, IAD, AKD) else {}
    options |= {"warmup": 0} if regime is IAD else {}
    options |= {"noise": NOISE + TEACHERS_NOISE * regime.has_teacher} if noisy else {}
    found = []
    for size, batches, accumulate in ((16, 4, 2), (32, 2, 1)):
        torch.manual_seed(0)
        found.append(gradients(build(regime, mlp_teacher, **options), tmp_path, size, batches, accumulate))
    assert len(found[0]) == len(found[1]) == 2
    for halves, whole in zip(*found, strict=True):
        assert halves.keys() == whole.keys()
        for key in whole:
            torch.testing.assert_close(halves[key], whole[key], rtol=1e-4, atol=1e-6)


@EVERY
def test_crafting_leaves_no_gradient_under_accumulation(regime, wrn_teacher, tmp_path):
    """What the first batch left is there, untouched, when the second batch's backward begins."""
    left: list[dict[str, Any]] = []

    class Left(pl.Callback):
        def look(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            left.append({key: p.grad.clone() for key, p in pl_module.named_parameters() if p.grad is not None})

        on_after_backward = on_before_backward = look

    run = trainer(tmp_path, callbacks=[Left()], limit_train_batches=2, accumulate_grad_batches=2)
    run.fit(build(regime, wrn_teacher), digits(16))
    none, after_first, before_second, after_second = left
    assert not none
    assert_identical(before_second, after_first)
    assert not torch.equal(after_second["network.fc.weight"], after_first["network.fc.weight"])


# Precision


@EVERY
@pytest.mark.parametrize("network", [wrn, cnn], ids=["wrn", "cnn"])
def test_bf16_mixed(regime, network, wrn_teacher, tmp_path):
    student = build(regime, wrn_teacher, network=network)
    before = everything(student.network)
    losses, grads = Losses(), Gradients()
    run = trainer(tmp_path, precision="bf16-mixed", callbacks=[losses, grads])
    run.fit(student, digits())
    assert len(losses.values) == 3
    assert torch.tensor(losses.values).isfinite().all()
    names = [key for key, _ in student.named_parameters()]
    for step in grads.steps:
        assert sorted(step) == sorted(names)
        assert all(gradient.any() for key, gradient in step.items() if key == "network.fc.weight")
        assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in step.values())
    after = everything(student.network)
    for key, _ in student.network.named_parameters():
        assert after[key].dtype == torch.float32
        assert not torch.equal(after[key], before[key]), key


@EVERY
def test_bf16_gradients_are_those_of_float32_roughly(regime, wrn_teacher, tmp_path):
    """A cache of cast weights that outlived the crafting would leave a layer without gradient."""
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        callback = Gradients()
        student = build(regime, wrn_teacher, network=cnn)
        student.network.dense[1].p = 0.0
        trainer(tmp_path, precision=precision, callbacks=[callback], limit_train_batches=1).fit(student, digits())
        found[precision] = callback.steps[0]
    for key, exact in found["32-true"].items():
        assert nn.functional.cosine_similarity(exact.flatten(), found["bf16-mixed"][key].flatten(), 0) > 0.85, key


# Losses that are no number


def exploding(epoch: int, rate: float = 1e30) -> Any:
    """A schedule whose rate explodes with an epoch."""
    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: rate if e >= epoch else 1.0)


def last(folder: Any) -> pl.callbacks.ModelCheckpoint:
    """As the command line keeps it."""
    return pl.callbacks.ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)


@pytest.mark.parametrize("every", [1, 2, 50])
@pytest.mark.parametrize("regime", [Teacher, ARD, FastARD], ids=name)
def test_a_loss_that_is_no_number_ends_the_fit_in_words(regime, every, mlp_teacher, tmp_path):
    student = build(regime, mlp_teacher, scheduler=exploding(1), optimizer=partial(torch.optim.SGD, lr=0.05))
    run = trainer(tmp_path, max_epochs=3, log_every_n_steps=every, callbacks=[last(tmp_path)], limit_train_batches=4)
    with pytest.raises(FloatingPointError) as caught:
        run.fit(student, digits())
    message = str(caught.value)
    assert f"step {run.global_step} (epoch 1)" in message
    assert 4 < run.global_step <= 8
    assert "nan" in message or "inf" in message
    assert "learning rate of 5e+28" in message
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_last_ckpt_can_be_gone_on_from_where_an_epochs_last_step_broke_the_weights(batch, tmp_path):
    """The loss of epoch 1's last batch is still a number, that of the weights after its step is not."""
    regime = build(Teacher, scheduler=exploding(1), optimizer=partial(torch.optim.SGD, lr=0.05))
    run = trainer(tmp_path, max_epochs=3, callbacks=[last(tmp_path)], limit_train_batches=1)
    with pytest.raises(FloatingPointError):
        run.fit(regime, digits())
    kept = build(Teacher)
    kept.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert kept.step(batch, 0)[0].isfinite()


@pytest.mark.parametrize(
    "options",
    [{"max_steps": 7}, {"max_steps": 7, "val_check_interval": 2}],
    ids=str,
)
def test_a_fit_that_max_steps_ends_does_not_hide_a_loss_that_is_no_number(options, tmp_path):
    """No epoch's last batch and no logged one comes after the loss broke."""
    regime = build(Teacher, scheduler=exploding(1), optimizer=partial(torch.optim.SGD, lr=0.05))
    run = trainer(tmp_path, **{"max_epochs": 3, "limit_train_batches": 4, "callbacks": [last(tmp_path)]} | options)
    with pytest.raises(FloatingPointError):
        run.fit(regime, digits())


def test_no_weights_that_are_no_number_are_kept_as_the_best_in_mid_epoch(tmp_path):
    """base.py looks at the loss 'before validation': validation within an epoch included."""
    regime = build(Teacher, scheduler=exploding(1), optimizer=partial(torch.optim.SGD, lr=0.05))
    best = pl.callbacks.ModelCheckpoint(tmp_path, "kept-{step}", save_top_k=-1, monitor="val/acc", mode="max")
    run = trainer(tmp_path, max_epochs=3, limit_train_batches=6, val_check_interval=2, callbacks=[best])
    with pytest.raises(FloatingPointError):
        run.fit(regime, digits())
    for path in tmp_path.glob("kept-*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in weights), path.name


def test_a_trainer_that_never_logs(tmp_path):
    """``log_every_n_steps: 0`` is Lightning's way to log nothing by step; so is ``barebones``."""
    trainer(tmp_path, log_every_n_steps=0).fit(build(Teacher), digits())


def test_a_barebones_trainer(tmp_path):
    run = pl.Trainer(accelerator="cpu", barebones=True, max_epochs=1, limit_train_batches=2, default_root_dir=tmp_path)
    run.fit(build(Teacher), digits())


@pytest.fixture(scope="session")
def robust_teacher(tmp_path_factory):
    """One that withstands what the students are to withstand."""
    torch.manual_seed(3)
    regime = build(AdversarialTraining, optimizer=partial(torch.optim.Adam, lr=0.01), attack=pgd(threat=SMALL))
    fit = trainer(tmp_path_factory.mktemp("robust"), limit_train_batches=1.0, limit_val_batches=0, max_epochs=4)
    fit.fit(regime, digits(64))
    return TeacherSource(module=regime.network)


@EVERY
def test_it_learns(regime, robust_teacher, tmp_path):
    """Each regime takes real digits well above chance in two epochs, and the adversarial ones a small ball with it."""
    options: dict[str, Any] = {"optimizer": partial(torch.optim.Adam, lr=0.01)} | attack(regime, threat=SMALL)
    if issubclass(regime, (Replayed, FGSMRS, NFGSM)):
        options["threat"] = SMALL
    run = trainer(tmp_path, limit_train_batches=1.0, limit_val_batches=1.0, max_epochs=2)
    run.fit(build(regime, robust_teacher, **options), digits(64))
    assert run.callback_metrics["val/acc"] > 0.5
    assert run.callback_metrics.get("val/robust_acc", 1) > 0.3
    assert ("val/robust_acc" in run.callback_metrics) == ("attack" in options or "threat" in options)
