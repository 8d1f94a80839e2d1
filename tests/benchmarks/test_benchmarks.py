"""The tables of the training benchmarks, their clocks, and the quick run of all of them."""

import re
import time
from dataclasses import astuple, replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from main_helpers import ROOT, environment

from benchmarks import __main__ as everything
from benchmarks import epoch, shares, training
from benchmarks.arms import Options, Setting, batches, regime
from benchmarks.beside import Drawn
from benchmarks.common import consoles, graphics, in_turn, ratios, seconds, spread
from benchmarks.floor import Floor
from networks.mobilenet import FullPrecision

PLACES = [(pair, device) for device in ("cpu", "cuda") for pair in ("wrn", "mobilenet")]
RELEASED, PLAIN, LOW = training.REFERENCE, training.named("32"), training.named("bf16")


def test_seconds_are_those_of_the_processor():
    def busy():
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass

    assert seconds(busy, "cpu") == pytest.approx(0.1, abs=0.05)
    assert seconds(lambda: time.sleep(0.2), "cpu") < 0.1


def test_all_take_their_turn_and_the_first_round_does_not_count(capsys):
    order = []
    taken = in_turn({name: lambda name=name: order.append(name) for name in "ab"}, 2, "cpu", consoles()[0], "title")
    assert order == list("ababab")
    assert {name: len(values) for name, values in taken.items()} == {"a": 2, "b": 2}
    assert "round 2 of 2" in capsys.readouterr().err


def test_a_spread_is_the_median_and_the_extremes_of_the_ratios_of_each_round():
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == [2.0, 3.0, 1.0]
    assert spread([2.0, 3.0, 1.0]) == "2.00 (1.00–3.00)"


def test_the_rows_by_hand():
    on = Setting("wrn", 4, steps=10, replays=8)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    floor = Floor(network, network, (3, 32, 32), {"32": 30720 * 4 * 24.0, "bf16": 30720 * 4 * 240.0})
    taken = {("ARD", RELEASED): [6.0, 8.0, 7.0], ("ARD", PLAIN): [4.0, 4.0, 4.0], ("ARD", LOW): [2.0, 4.0, 3.0]}
    memory = {"ARD": {RELEASED: 2000.4, PLAIN: 1.0, LOW: 1.0}}
    first, second, third = training.rows(on, taken, floor, memory)
    assert first == ["ARD", RELEASED, "7,000.0", "", "", "14%", "2,000"]
    assert second[2:6] == ["4,000.0", "1.75 (1.50–2.00)", "", "25%"]
    assert third[2:6] == ["3,000.0", "2.33 (2.00–3.00)", "≥ 2.5 missed", "3%"]


def test_fast_ard_is_held_against_kd():
    taken = {("Fast-ARD", PLAIN): [1.0, 2.0], ("KD", PLAIN): [1.0, 1.0], ("KD", LOW): [1.0, 1.0]}
    assert training.replayed(taken) == ["Fast-ARD's time over KD's, 32: 1.50 (1.00–2.00); target ≤ 1.15 missed"]


def test_an_option_switches_what_it_says():
    on = Setting("wrn", 2)
    fast, plain = (regime("ARD", on, given) for given in (Options(), shares.PLAIN))
    weights = [each.network.block1.layer[0].conv2.weight for each in (fast, plain)]
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights] == [True, False]
    assert [each.folding for each in (fast, plain)] == [True, False]
    assert [each.teacher.folding for each in (fast, plain)] == [True, False]
    only = regime("ARD", on, Options(teacher=False))
    assert (only.folding, only.teacher.folding) == (True, False)
    assert [each.attack.batchnorm for each in (fast, plain)] == ["eval", "train"]
    assert fast.alpha == 1 > plain.alpha > 1 - 1e-6
    assert all(torch.equal(one, other) for one, other in zip(fast.parameters(), plain.parameters(), strict=True))


def test_batches_are_full_shuffled_and_replayed():
    found = batches(Setting("cnn", 4, images=10), replays=2)
    seen = [next(found) for _ in range(8)]
    assert all(batch.x.shape == (4, 3, 32, 32) for batch in seen)
    assert all(torch.equal(one.x, other.x) for one, other in zip(seen[::2], seen[1::2], strict=True))
    assert not torch.equal(seen[0].index, seen[4].index)


def test_the_ladder_has_all_that_is_on_by_default_and_then_the_lower_precision():
    steps = list(shares.LADDER.values())
    assert Options() in steps
    assert Options("bf16") == steps[-2]
    differ = [sum(one != other for one, other in zip(*map(astuple, pair), strict=True)) for pair in pairwise(steps)]
    assert differ == [1, 1, 1, 1, 1, 2, 1, 1]  # autocast comes without what it asks for


def test_a_rung_that_is_none_is_left_out():
    last = {place: list(shares.ladder("ARD", Setting(place[0], 4, device=place[1])))[-1] for place in PLACES}
    assert last == {
        ("wrn", "cpu"): "bfloat16 by autocast",
        ("mobilenet", "cpu"): shares.FULL,
        ("wrn", "cuda"): shares.COMPILED,
        ("mobilenet", "cuda"): shares.COMPILED,
    }
    assert shares.FULL not in shares.ladder("ARD", Setting("mobilenet", 4, device="cuda"))
    ard, kd = (shares.ladder(method, Setting("mobilenet", 4), compiled=True) for method in ("ARD", "KD"))
    assert list(ard) == list(shares.LADDER)
    assert list(kd) == [name for name in ard if name not in (shares.SPARED, shares.MODE, shares.COPY)]


def test_autocast_takes_all_convolutions_where_it_is_told_to():
    on = Setting("mobilenet", 2)
    for full, count in ((True, 3), (False, 0)):
        network = regime("PGD-AT", on, Options("bf16", full=full)).network
        assert sum(isinstance(module, FullPrecision) for module in network.modules()) == count


def test_the_cells_of_an_epoch_by_hand():
    training = replace(epoch.TRAININGS["plain"], batch=512)
    found = epoch.cells("wrn", "plain", training, [1.2, 1.1, 2.0], [1.0, 1.0, 1.0])
    assert found == ["wrn", "plain", "512", "1,000.0", "1,200.0", "1.20 (1.10–2.00)", "200.00", "≤ 1.15 missed"]
    assert epoch.cells("wrn", "ARD", epoch.TRAININGS["ARD"], [1.04], [1.0])[-1] == "≤ 1.05 met"
    assert epoch.cells("mlp", "plain", training, [1.0], [1.0])[-1] == ""


def test_a_gpu_is_named_with_its_driver_and_what_float32_means_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    says = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  555.42.06  Release Build\nGCC version:  gcc 13.3.0\n"
    )
    (tmp_path / "version").write_text(says)
    assert graphics(tmp_path / "version") == "NVIDIA X, driver 555.42.06, CUDA 13.2, float32 convolutions in TF32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert graphics(tmp_path / "no") == "NVIDIA X, driver unknown, CUDA 13.2, float32 convolutions without TF32"


def test_the_device_is_that_of_all_that_have_one(monkeypatch):
    called = {}

    def imported(name):
        return SimpleNamespace(main=lambda words: called.update({name.removeprefix("benchmarks."): words}))

    monkeypatch.setattr(everything, "import_module", imported)
    everything.main(["--device", "cuda"])
    assert list(called) == list(everything.QUICK)
    on_cpu = {name for name, words in called.items() if words == []}
    assert on_cpu == set(everything.HERE)
    assert all(words == ["--device", "cuda"] for name, words in called.items() if name not in on_cpu)


def test_noise_has_as_many_images_as_asked_for():
    data = Drawn(6, 2)
    data.setup()
    assert len(data.split_index("train")) == 6


@pytest.mark.parametrize("module", [training, shares, epoch])
def test_nothing_is_measured_no_times(module, capsys):
    with pytest.raises(SystemExit):
        module.main(["--rounds", "0"])
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_everyone_steps_once_more_in_a_process_of_their_own():
    found = training.peaks("KD", Setting("cnn", 2, steps=1, images=8), consoles()[0])
    assert list(found) == [RELEASED, PLAIN, LOW]
    assert all(0 < peak < 2000 for peak in found.values())


@pytest.mark.slow
def test_the_quick_run_passes_through_all_of_them(monkeypatch, capsys):
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    try:
        everything.main(["--quick"])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert len(re.findall(r"ARD +tempered, bf16", printed)) >= 1
    assert "bfloat16 by autocast" in printed
    assert "through main.py" in printed
    assert "torchvision" in printed
    assert "captum" in printed
