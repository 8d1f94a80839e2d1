"""A suite that was stopped goes on from where it was, and ends as if it had not been stopped."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from suite_helpers import assert_same, pictures, smooth
from torch import nn

from attacks import APGD, FGSM, PGD, AutoAttack, Square, Strong, Threat, Transfer, run_suite
from attacks.state import NEEDED, State, fingerprint
from networks import Normalise

THREAT = Threat("linf", 0.03)  # leaves half of the images standing, so that later parts have several batches


def part(where):
    """A batch's columns, all alike."""
    return {name: where for name in NEEDED if name != "where"}


class Stopped(PGD):
    """PGD that is stopped by Ctrl-C when it is given its n-th batch."""

    batches: ClassVar[list[int]] = []
    stop_at: ClassVar[int | None] = None

    def perturb(self, model, x, y, draws):
        Stopped.batches.append(len(x))
        if len(Stopped.batches) == Stopped.stop_at:
            raise KeyboardInterrupt
        return super().perturb(model, x, y, draws)


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    monkeypatch.setattr(Stopped, "batches", [])
    monkeypatch.setattr(Stopped, "stop_at", None)


@pytest.fixture
def model():
    return smooth()


@pytest.fixture
def data(model):
    """Thirty images in batches of eight, five of them wrong when clean."""
    return list(zip(*(part.split(8) for part in pictures(model)), strict=True))


ATTACKS = (
    FGSM(),
    Stopped(steps=2, restarts=2),
    AutoAttack(attacks=[FGSM(loss="margin"), Stopped(steps=3), Square(queries=5)]),
)


def stopped_at(number, model, data, state):
    """Runs the suite until the stopping attacks are given their batch of this number."""
    Stopped.batches.clear()
    Stopped.stop_at = number
    with pytest.raises(KeyboardInterrupt):
        run_suite(model, data, ATTACKS, THREAT, state=state)
    Stopped.stop_at = None
    assert len(Stopped.batches) == number
    Stopped.batches.clear()


@pytest.mark.parametrize("number", [1, 2, 4, 5, 6])
def test_a_resumed_suite_ends_as_one_that_was_not_stopped(model, data, tmp_path, number):
    """Of the stopping attacks' batches the first four are of the attack alone, the fifth and sixth of the part."""
    whole = run_suite(model, data, ATTACKS, THREAT)
    batches = list(Stopped.batches)
    assert len(batches) == 6
    stopped_at(number, model, data, State(tmp_path / "unfinished"))
    resumed = run_suite(model, data, ATTACKS, THREAT, state=State(tmp_path / "unfinished"))
    assert Stopped.batches == batches[number - 1 :]  # what was done is not done again
    assert_same(resumed, whole)
    for name, images in whole.examples.items():
        assert np.array_equal(resumed.examples[name], images), name
    for name, result in (("whole", whole), ("resumed", resumed)):
        result.write(tmp_path / f"{name}.parquet")
        result.write_images(tmp_path / f"{name}.npz")
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "resumed.parquet").read_bytes()


def test_a_suite_may_be_stopped_again_and_again(model, data, tmp_path):
    whole = run_suite(model, data, ATTACKS, THREAT)
    for _ in range(5):
        stopped_at(2, model, data, State(tmp_path))
    Stopped.batches.clear()
    resumed = run_suite(model, data, ATTACKS, THREAT, state=State(tmp_path))
    assert len(Stopped.batches) == 1
    assert_same(resumed, whole)


def test_time_is_that_of_all_the_sittings(model, data, tmp_path):
    first = State(tmp_path)
    done = run_suite(model, data, ATTACKS, THREAT, state=first)
    again = run_suite(model, data, ATTACKS, THREAT, state=State(tmp_path))
    for name in done.attacks:
        assert again.outcomes[name].seconds == pytest.approx(done.outcomes[name].seconds)


def test_a_finished_suite_leaves_nothing(model, data, tmp_path):
    state = State(tmp_path / "unfinished")
    run_suite(model, data, ATTACKS, THREAT, state=state)
    assert any(state.folder.iterdir())
    state.finish()
    assert list(tmp_path.iterdir()) == []
    state.finish()  # twice does no harm
    run_suite(model, data, ATTACKS, THREAT, state=State(tmp_path / "unfinished"))
    assert len(Stopped.batches) == 2 * 6


def test_a_finished_suite_leaves_the_one_beside_it(model, data, tmp_path):
    """Two processes of one run, or two runs of one name, keep their states in one place."""
    mine, other = State(tmp_path), State(tmp_path)
    stopped_at(3, model, data, other)
    kept = {path.name: path.read_bytes() for path in other.folder.iterdir()}
    assert len(kept) == 4 + 2  # FGSM's batches and two of the next attack's
    run_suite(model, data[:2], ATTACKS, THREAT, state=mine)
    mine.finish()
    assert list(tmp_path.iterdir()) == [other.folder]
    assert {path.name: path.read_bytes() for path in other.folder.iterdir()} == kept


def test_without_a_root_nothing_is_kept(model, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = State(None)
    run_suite(model, data, ATTACKS, THREAT, state=state)
    state.finish()
    assert list(tmp_path.iterdir()) == []


# --- files ---


def test_a_file_that_was_not_finished_is_ignored(tmp_path, monkeypatch):
    """A process that is killed while it writes has left the file under another name."""
    state, where = State(tmp_path), np.arange(3)
    state.open("key")

    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            state.write("001", 0, where, part(where))
    assert len(list(state.folder.glob(".*"))) == 1
    assert state.read("001", 0, where) is None
    state.write("001", 0, where, part(where))
    assert state.read("001", 0, where)["rank"].tolist() == [0, 1, 2]
    assert len(list(state.folder.glob("[!.]*"))) == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_ignored(tmp_path, share):
    """As a power cut can leave it: the name is there, its content is not."""
    state, where = State(tmp_path), np.arange(3)
    state.open("key")
    state.write("001", 0, where, part(where))
    (path,) = state.folder.iterdir()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert state.read("001", 0, where) is None


def test_a_batch_of_other_images_is_not_taken_for_this_one(tmp_path):
    state = State(tmp_path)
    state.open("key")
    state.write("001", 0, np.array([0, 1, 2]), part(np.zeros(3)))
    assert state.read("001", 0, np.array([0, 1, 3])) is None
    assert state.read("001", 0, np.array([0, 1])) is None
    assert state.read("001", 1, np.array([0, 1, 2])) is None
    assert state.read("002", 0, np.array([0, 1, 2])) is None
    assert state.read("001", 0, np.array([0, 1, 2])).keys() == part(where=None).keys()


# --- what makes it another suite ---


def with_last(model):
    """Another weight, by one step of a float."""
    with torch.no_grad():
        model[3].bias[-1] = torch.nextafter(model[3].bias[-1], torch.tensor(torch.inf, dtype=torch.float64))


def with_other_pixel(data):
    (x, y, index), *rest = data
    x = x.clone()
    x[0, 0, 0, 0] = 1 - x[0, 0, 0, 0]
    return [(x, y, index), *rest]


def folder_of(model, data, tmp_path, attacks=ATTACKS[:1], threat=THREAT, **settings):
    state = State(tmp_path)
    run_suite(model, data, attacks, threat, state=state, **settings)
    return state.folder.name


CHANGES = {
    "eps": {"threat": Threat("linf", 0.11)},
    "norm": {"threat": Threat("l2", 0.03)},
    "box": {"threat": Threat("linf", 0.03, (-1.0, 1.0))},
    "seed": {"seed": 1},
    "rng": {"rng": "official"},
    "precision": {"precision": "bf16"},
    "votes": {"votes": 2},
    "top": {"top": 2},
    "examples": {"examples": 3},
    "temperature of a strong attack": {"attacks": (Strong(FGSM(), 2.0),)},
    "loss": {"attacks": (FGSM(loss="margin"),)},
    "one attack more": {"attacks": (FGSM(), PGD(steps=1))},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_settings_are_another_suite(model, data, tmp_path, change):
    data = [tuple(part.float() if part.is_floating_point() else part for part in batch) for batch in data]
    model = model.float()
    assert folder_of(model, data, tmp_path) == folder_of(model, data, tmp_path)
    assert folder_of(model, data, tmp_path) != folder_of(model, data, tmp_path, **change)


def test_other_attacks_of_the_same_name_are_another_suite(model, data):
    def key(attack):
        return fingerprint(model, data, {"same": attack}, ())

    attacks = [
        PGD(),
        PGD(step_size=0.01),
        PGD(random_start=False),
        PGD(batchnorm="train"),
        APGD(),
        AutoAttack(attacks=[PGD(), FGSM()]),
        AutoAttack(attacks=[FGSM(), PGD()]),
        AutoAttack(attacks=[FGSM(), PGD(step_size=0.01)]),
        Transfer(PGD(), smooth()),
        Transfer(PGD(), smooth()),  # with other weights
    ]
    keys = list(map(key, attacks))
    assert len(set(keys)) == len(keys)
    assert keys == list(map(key, attacks))


def test_other_weights_or_images_are_another_suite(model, data, tmp_path):
    keys = [
        folder_of(model, data, tmp_path),
        folder_of(model, with_other_pixel(data), tmp_path),
        folder_of(model, data[:-1], tmp_path),
        folder_of(model, data[::-1], tmp_path),
        folder_of(model, [tuple(torch.cat(part) for part in zip(*data, strict=True))], tmp_path),  # batched otherwise
        folder_of(model, [(x, (y + 1) % 4, index) for x, y, index in data], tmp_path),
        folder_of(model, [(x, y, index + 1) for x, y, index in data], tmp_path),
        folder_of(nn.Sequential(*model), data, tmp_path),
    ]
    assert keys[-1] == keys[0]  # the same in another object
    with_last(model)
    keys[-1] = folder_of(model, data, tmp_path)
    assert len(set(keys)) == len(keys)


def test_another_normalisation_is_another_suite(data):
    """Its constants are buffers that are not saved, and decide every logit."""
    one, other = (nn.Sequential(Normalise([mean] * 3, [0.2] * 3), nn.Flatten()) for mean in (0.4, 0.5))
    assert fingerprint(one, data, {}, ()) != fingerprint(other, data, {}, ())


def test_another_behaviour_is_another_suite(data, tmp_path):
    """A constant that is no weight, buffer or printed form shows in the answers."""

    class Scaled(nn.Module):
        def __init__(self, model, scale):
            super().__init__()
            self.model, self.scale = model, scale

        def forward(self, x):
            return self.model(x) * self.scale

    torch.manual_seed(0)
    model = smooth()
    assert folder_of(Scaled(model, 1.0), data, tmp_path) != folder_of(Scaled(model, 2.0), data, tmp_path)
