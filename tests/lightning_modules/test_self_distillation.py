"""Self-distillation, held against its formula, its heads' shapes, and what it must leave alone."""

import copy
import gc
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from regime_helpers import FACTS, Gradients, Losses, assert_identical, calls, cnn, digits, everything, mlp, trainer, wrn
from torch import Tensor, nn

from attacks import PGD, Draws, Threat
from attacks.records import Record, wilson
from datamodules import Batch
from lightning_modules.self_distillation import SelfDistillation, self_distillation
from networks import MLP, DefensiveCNN, Facts, MobileNetV2, ResNet18
from networks.checkpoint import load_network

T = 3.0


def byot(**kwargs: Any) -> SelfDistillation:
    defaults = {"network": wrn, "facts": FACTS, "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}
    return SelfDistillation(**defaults | kwargs)


# The formula, on tensors in float64 and by plain arithmetic.


def log_p(z: Tensor, t: float = 1.0) -> Tensor:
    return z / t - (z / t).exp().sum(1, keepdim=True).log()


def formula(logits: list[Tensor], maps: list[Tensor], y: Tensor, alpha: float, t: float, weight: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for b, label in enumerate(y.tolist()):
        for z in logits:
            total = total - (1 - alpha) * log_p(z)[b, label]
        for z in logits[:-1]:
            target, student = log_p(logits[-1].detach(), t)[b], log_p(z, t)[b]
            total = total + alpha * t * t * sum(p.exp() * (p - q) for p, q in zip(target, student, strict=True))
        for f in maps[:-1]:
            total = total + weight * sum((f[b] - maps[-1][b].detach()).flatten() ** 2)
    return total / len(y)


def answers(regime: SelfDistillation, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """z_i and F_i of a regime's modules, put together here."""
    seen: dict[str, Tensor] = {}
    for name, stage in regime.network.stages().items():
        stage.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    last = regime.network(x)
    maps, logits = list(seen.values()), []
    for i, head in enumerate(regime.heads):
        maps[i] = head.adapter(maps[i])
        pooled = maps[i].clamp(min=0).flatten(2).sum(2) / maps[i][0, 0].numel()
        logits.append(pooled @ head.fc.weight.T + head.fc.bias)
    return [*logits, last], maps


@pytest.mark.parametrize("network", [wrn, partial(DefensiveCNN, form="mnist", reduced=True, dropout=0.0)])
@pytest.mark.parametrize(("alpha", "weight"), [(0.0, 0.0), (0.3, 0.01), (0.3, 0.0), (1.0, 0.01)])
def test_the_steps_loss_and_gradients_are_the_formulas(batch, network, alpha, weight):
    regime = byot(network=network, alpha=alpha, temperature=T, feature_weight=weight).train()
    double = copy.deepcopy(regime).double()
    expected = formula(*answers(double, batch.x.double()), batch.y, alpha, T, weight)
    loss, logs = regime.step(batch, 0)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    parts = (1 - alpha) * logs["cross_entropy"] + alpha * T**2 * logs["kl"] + weight * logs["feature_distance"]
    torch.testing.assert_close(parts, loss)
    loss.backward()
    expected.backward()
    found = dict(regime.named_parameters())
    for key, parameter in double.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert found[key].grad is not None, key  # DDP waits for each
        torch.testing.assert_close(found[key].grad.double(), wanted, rtol=2e-3, atol=2e-5)


def test_the_loss_is_in_float32_whatever_the_precision():
    torch.manual_seed(0)
    logits = [8 * torch.randn(4, 10, dtype=torch.bfloat16) for _ in range(3)]
    # In fp16 the sum over these maps would be infinite.
    maps = [200 * torch.randn(4, 8, 5, 5).half() for _ in range(3)]
    y = torch.tensor([0, 3, 3, 9])
    loss, _ = self_distillation(logits, maps, y, 0.4, 2.0, 0.1)
    wanted = formula([z.double() for z in logits], [f.double() for f in maps], y, 0.4, 2.0, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_last_classifier_is_taught_by_labels_alone(batch, weight):
    """At a = 1 the labels have no word, and nothing else moves the last stage and the network's own head."""
    regime = byot(alpha=1.0, feature_weight=weight)
    regime.step(batch, 0)[0].backward()
    for key, parameter in regime.network.named_parameters():
        moved = bool(parameter.grad.any())
        assert moved == key.startswith(("conv1", "block1", "block2")), key
    assert all(head.fc.weight.grad.any() for head in regime.heads)


# What a step costs and leaves behind


def test_a_step_is_one_forward_and_one_backward(batch):
    regime = byot()
    backwards = []
    with calls(regime.network) as outputs, calls(regime.network.block1) as stages:
        loss, _ = regime.step(batch, 0)
        outputs[0].register_hook(lambda gradient: backwards.append(gradient))
        loss.backward()
    assert (len(outputs), len(stages), len(backwards)) == (1, 1, 1)


def test_hooks_and_graphs_do_not_outlive_a_step(batch):
    regime = byot()
    made = []
    handle = regime.network.block1.register_forward_hook(
        lambda module, inputs, output: made.append(weakref.ref(output))
    )
    loss, logs = regime.step(batch, 0)
    handle.remove()
    assert not any(module._forward_hooks for module in regime.network.modules())
    loss.backward()
    del loss, logs
    gc.collect()
    assert made[0]() is None


def test_hooks_are_gone_after_an_error(batch):
    regime = byot()
    with pytest.raises(RuntimeError):
        regime.step(batch._replace(x=batch.x[:, :, 0]), 0)
    assert not any(module._forward_hooks for module in regime.network.modules())


def test_the_network_alone_runs_no_head(batch):
    regime = byot().eval()
    with calls(regime.heads[0]) as outputs:
        regime(batch.x)
        PGD(Threat("linf", 0.1, FACTS.box), steps=2)(regime.network, batch.x, batch.y, Draws(batch.index, 0))
    assert not outputs


# Heads


@pytest.mark.parametrize(
    ("network", "size", "last", "halvings"),
    [
        (ResNet18, 32, (512, 4, 4), [3, 2, 1]),
        (MobileNetV2, 32, (1280, 4, 4), None),
        (wrn, 8, (64, 2, 2), [2, 1]),
        (wrn, 28, (64, 7, 7), [2, 1]),
        (wrn, 9, (64, 3, 3), [2, 1]),  # 9 to 5 to 3: strides round up
        (wrn, 1, (64, 1, 1), [0, 0]),
        (partial(DefensiveCNN, form="mnist"), 28, (64, 7, 7), [1]),
        (partial(DefensiveCNN, form="mnist"), 14, (64, 3, 3), [1]),  # 7 to 3: pools round down
    ],
)
def test_heads_have_the_last_stages_shape(network, size, last, halvings):
    facts = Facts(7, 3, size, (0.5,) * 3, (0.5,) * 3)
    regime = byot(network=network, facts=facts)
    logits, maps = answers(regime.eval(), torch.rand(2, *facts.shape))
    assert [tuple(f.shape) for f in maps] == [(2, *last)] * len(regime.network.stages())
    assert [tuple(z.shape) for z in logits] == [(2, 7)] * len(maps)
    for i, head in enumerate(regime.heads):
        convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
        assert {c.out_channels for c in convolutions[:-1]} == {last[0] // 4}
        assert [c.kernel_size for c in convolutions] == [(1, 1), *[(3, 3)] * (len(convolutions) - 2), (1, 1)]
        assert halvings is None or sum(c.stride == (2, 2) for c in convolutions) == halvings[i]


def test_widths_below_four(batch):
    """A quarter of three channels is at least one."""

    class Thin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 3, 3, 2, 1)
            self.fc = nn.Linear(3 * 4, 10)

        def stages(self) -> dict[str, nn.Module]:
            return {"one": self.one, "two": self.two}

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.two(self.one(x)).flatten(1))

    thin = byot(network=lambda facts: Thin())
    assert thin.heads[0].adapter[0].out_channels == 1
    thin.step(batch, 0)[0].backward()


def test_building_the_heads_leaves_the_network_as_it_was():
    """Modes that the factory chose, flags and buffers included."""

    def frozen(facts: Facts) -> nn.Module:
        network = wrn(facts)
        network.block1.eval().requires_grad_(False)
        return network

    torch.manual_seed(3)
    built = byot(network=frozen).network
    torch.manual_seed(3)
    alone = frozen(FACTS)
    assert_identical(everything(built), everything(alone))
    assert [m.training for m in built.modules()] == [m.training for m in alone.modules()]
    assert [p.requires_grad for p in built.parameters()] == [p.requires_grad for p in alone.parameters()]
    assert not any(module._forward_hooks for module in built.modules())


# Arguments


class Bare(nn.Sequential):
    """Two of its own layers as stages, though it names none unless asked to."""

    def __init__(self, *names: str) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10), nn.Linear(10, 10))
        if names:
            self.stages = lambda: {name: self[int(name)] for name in names}


class Idle(Bare):
    """Names a stage that no image passes."""

    def __init__(self) -> None:
        super().__init__("0", "1")
        self.idle = nn.ReLU()
        self.stages = lambda: {"0": self[0], "idle": self.idle}

    def forward(self, x: Tensor) -> Tensor:
        for i in range(5):
            x = self[i](x)
        return x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"alpha": -0.1}, r"alpha must lie in \[0, 1\], got -0.1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"feature_weight": -1.0}, "feature_weight must be at least 0, got -1.0"),
        ({"feature_weight": float("nan")}, "feature_weight must be at least 0, got nan"),
        ({"network": lambda facts: Bare()}, r"at least 2 stages, Bare has 0: use one such as networks\.ResNet18"),
        ({"network": lambda facts: Bare("0")}, "at least 2 stages, Bare has 1"),
        ({"network": mlp}, "at least 2 stages, MLP has 1"),
        (
            {"network": partial(MLP, widths=(16, 8))},
            r"stage hidden1 of MLP puts out \(1, 16\): use a convolutional network",
        ),
        ({"network": lambda facts: Bare("0", "2")}, r"stage 2 of Bare puts out \(1, 144\)"),
        ({"network": lambda facts: Idle()}, "stage idle of Idle puts out NoneType"),
    ],
    # Not the objects themselves: parallel workers must agree on the names.
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_refused_arguments(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        byot(**options)
    assert "\n" not in str(caught.value)


# Checkpoints and copies


def test_a_checkpoint_restores_the_heads_and_holds_a_plain_network(batch, tmp_path):
    regime = byot(alpha=0.6)
    run = trainer(tmp_path)
    run.fit(regime, digits())
    run.save_checkpoint(tmp_path / "byot.ckpt")
    again = SelfDistillation.load_from_checkpoint(tmp_path / "byot.ckpt", network=wrn, weights_only=True)
    assert again.alpha == 0.6
    assert_identical(everything(again.heads), everything(regime.heads))
    loaded = load_network(tmp_path / "byot.ckpt", network=wrn).network
    assert torch.equal(loaded(batch.x), regime.eval()(batch.x))
    for one, other in zip(answers(again.eval(), batch.x)[0], answers(regime, batch.x)[0], strict=True):
        assert torch.equal(one, other)


def test_a_copy_is_a_regime_of_its_own(batch):
    regime = byot()
    twin = copy.deepcopy(regime)
    before = everything(regime)
    for part in (twin.network, twin.heads):
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.mul_(1.5)
    loss = twin.step(batch, 0)[0]
    loss.backward()
    assert_identical(everything(regime), before)
    assert all(parameter.grad is None for parameter in regime.parameters())
    assert loss != regime.step(batch, 0)[0]


def test_averaged_weights(tmp_path):
    callback = pl.callbacks.EMAWeightAveraging(decay=0.5)
    run = trainer(tmp_path, callbacks=[callback])
    regime = byot()
    run.fit(regime, digits())
    assert run.callback_metrics["val/acc_head1"].isfinite()
    assert any(key.startswith("heads.0.adapter") for key in callback._average_model.module.state_dict())


# In a trainer


def test_bf16_mixed(tmp_path):
    regime = byot(feature_weight=0.1)
    before = everything(regime)
    losses, grads = Losses(), Gradients()
    trainer(tmp_path, precision="bf16-mixed", callbacks=[losses, grads]).fit(regime, digits())
    assert len(losses.values) == 3
    assert torch.tensor(losses.values).isfinite().all()
    names = [key for key, _ in regime.named_parameters()]
    for step in grads.steps:
        assert sorted(step) == sorted(names)
        assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in step.values())
    after = everything(regime)
    assert not any(torch.equal(after[key], before[key]) for key in names)


def test_fast_dev_run(tmp_path):
    trainer(tmp_path, fast_dev_run=True, num_sanity_val_steps=0).fit(byot(network=cnn), digits())


class Told(pl.Callback):
    """What the regime says of a test, when the suite asks."""

    records: list[Record]

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.records = pl_module.records()


def recomputed(regime: SelfDistillation, batch: Batch) -> dict[str, int]:
    with torch.no_grad():
        logits, _ = answers(copy.deepcopy(regime).eval(), batch.x)
    said = {f"head {i}": z for i, z in enumerate(logits, 1)} | {"ensemble": sum(z.softmax(1) for z in logits)}
    return {name: int((z.argmax(1) == batch.y).sum()) for name, z in said.items()}


def test_figures_of_validation_and_test_are_those_of_a_recomputation(tmp_path):
    """Of each epoch's own images: several batches, the last one partial, and no leftovers of earlier epochs."""
    regime, data = byot(optimizer=partial(torch.optim.Adam, lr=0.01)), digits()
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=20, limit_val_batches=1.0, callbacks=[told := Told()])
    run.fit(regime, data)
    right = recomputed(regime, data.batch("validation"))
    n = len(data.split_index("validation"))
    found = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("val/acc")}
    assert found == pytest.approx(
        {
            "val/acc": right["head 3"] / n,
            "val/acc_head1": right["head 1"] / n,
            "val/acc_head2": right["head 2"] / n,
            "val/acc_ensemble": right["ensemble"] / n,
        }
    )
    assert found["val/acc"] > 0.2
    assert len(set(right.values())) > 1

    for _ in range(2):
        (figures,) = run.test(regime, data, verbose=False)
        right = recomputed(regime, data.batch("test"))
        assert figures == pytest.approx(
            {
                "test/acc": right["head 3"] / 360,
                "test/acc_head1": right["head 1"] / 360,
                "test/acc_head2": right["head 2"] / 360,
                "test/acc_ensemble": right["ensemble"] / 360,
            }
        )
        assert [record.metric for record in told.records] == ["head 1", "head 2", "head 3", "ensemble"]
        for record in told.records:
            assert (record.value, record.n) == (right[record.metric] / 360, 360)
            assert (record.low, record.high) == wilson(right[record.metric], 360)


def test_a_part_of_the_test_split_is_counted_as_such_and_none_says_nothing(tmp_path):
    regime = byot()
    assert regime.records() == []
    trainer(tmp_path, limit_test_batches=2, callbacks=[told := Told()]).test(regime, digits(), verbose=False)
    assert {record.n for record in told.records} == {128}


SCRIPT = """
import sys
import torch
from regime_helpers import digits, trainer
from test_self_distillation import Told, byot

if __name__ == "__main__":
    torch.manual_seed(0)
    regime, told = byot(alpha=float(sys.argv[1]), feature_weight=0.0), Told()
    fit = trainer(".", callbacks=[told], limit_train_batches=6, limit_val_batches=1.0, strategy="ddp", devices=2)
    fit.fit(regime, digits(16))
    val = {key: float(value) for key, value in fit.callback_metrics.items() if key.startswith("val/acc")}
    fit.test(regime, digits(), verbose=False)
    content = {"weights": regime.state_dict(), "val": val, "records": [(r.metric, r.value, r.n) for r in told.records]}
    torch.save(content, f"rank{fit.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_two_processes(alpha, tmp_path, monkeypatch):
    """They train every parameter they share, and tell the figures of all images, each counted once."""
    here = Path(__file__).parent
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parents[1]}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "script.py", str(alpha)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    regime, data = byot(), digits()
    data.setup()
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    parameters = {key for key, _ in regime.named_parameters()}
    for key in parameters:
        assert torch.equal(found[0]["weights"][key], found[1]["weights"][key]), key
    # Batch-norm's averages are of each process's own images until DDP's next forward takes rank zero's.
    assert found[0]["records"] == found[1]["records"]
    assert {n for _, _, n in found[0]["records"]} == {360}
    right = [0, 0, 0, 0]
    for rank in (0, 1):
        regime.load_state_dict(found[rank]["weights"])
        index = data.split_index("test")[rank::2]
        right = [a + b for a, b in zip(right, recomputed(regime, data.batch("test", index)).values(), strict=True)]
    assert [value for _, value, _ in found[0]["records"]] == [count / 360 for count in right]
    assert set(found[0]["val"]) == {"val/acc", "val/acc_head1", "val/acc_head2", "val/acc_ensemble"}


# The idea


@pytest.mark.slow
def test_shallow_classifiers_learn_the_digits_and_need_no_label_for_it(tmp_path):
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    regime, data = byot(optimizer=sgd), digits(64)
    options = {"limit_train_batches": 1.0, "num_sanity_val_steps": 0, "callbacks": [told := Told()]}
    run = trainer(tmp_path, max_epochs=10, **options)
    run.fit(regime, data)
    run.test(regime, data, verbose=False)
    values = {record.metric: record.value for record in told.records}
    assert min(values.values()) > 0.93
    # Half the width of an accuracy's interval over 360 images at 97 %.
    assert values["ensemble"] > values["head 3"] - 0.02

    # Fresh heads on the trained, frozen network see no label and no map: the last classifier's word is all they have.
    apprentice = byot(alpha=1.0, feature_weight=0.0, optimizer=sgd)
    apprentice.network.load_state_dict(regime.network.state_dict())
    apprentice.network.requires_grad_(False)
    apprentice.network.fc.requires_grad_()
    run = trainer(tmp_path, max_epochs=5, **options)
    run.test(apprentice, data, verbose=False)
    before = {record.metric: record.value for record in told.records}
    assert max(before["head 1"], before["head 2"]) < 0.4
    run.fit(apprentice, data)
    run.test(apprentice, data, verbose=False)
    after = {record.metric: record.value for record in told.records}
    assert min(after["head 1"], after["head 2"]) > 0.9


@pytest.mark.slow
def test_the_feature_weight_brings_the_maps_together(tmp_path):
    distances = {}
    for weight in (0.0, 1e-2):
        torch.manual_seed(0)
        regime = byot(feature_weight=weight, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
        run = trainer(tmp_path, max_epochs=5, limit_train_batches=1.0)
        run.fit(regime, digits(64))
        distances[weight] = run.callback_metrics["train/feature_distance"]
        assert run.callback_metrics["val/acc"] > 0.9
    assert distances[1e-2] < distances[0.0] / 3
