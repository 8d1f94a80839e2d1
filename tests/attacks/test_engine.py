"""The engine: full batches of what stands, parts of an attack, confirmed successes, counted passes."""

import io
import time

import numpy as np
import pytest
import torch
from attack_helpers import Counting, Moving, TwoClasses
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text
from suite_helpers import CLEAN, ROBUST, THREAT, UP, VALUES, batches, by_metric, down, halves, pictures, smooth, up
from torch import nn

from attacks import EOT, FGSM, PGD, Attack, AutoAttack, Noise, Square, Strong, Threat, run_suite
from attacks.engine import standing
from attacks.state import State


@pytest.fixture
def model():
    return halves()


# --- batches of what stands ---


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any), st.randoms(use_true_random=False))
def test_what_stands_forms_full_batches_in_its_order(sizes, random):
    count = sum(sizes)
    x, y, index = torch.rand(count, 1, 1, 2), torch.arange(count) % 3, torch.arange(count) + 50
    stands = np.array([random.random() < 0.6 for _ in range(count)])
    given = list(zip(*(part.split(sizes) for part in (x, y, index)), strict=True))
    found = list(standing(given, stands))
    lengths = [len(where) for _, _, _, where in found]
    assert all(length == max(sizes) for length in lengths[:-1])
    assert all(0 < length <= max(sizes) for length in lengths)
    assert [position for *_, where in found for position in where] == np.flatnonzero(stands).tolist()
    for images, labels, indices, where in found:
        assert torch.equal(images, x[where])
        assert torch.equal(labels, y[where])
        assert torch.equal(indices, index[where])


def test_every_part_of_an_attack_gets_full_batches_of_what_the_parts_before_left(model):
    first, second, third = Moving("up", up), Moving("down", down), Moving("again", up)
    run_suite(model, batches(4, 4, 2), [AutoAttack(attacks=[first, second, third])], THREAT)
    assert first.sizes == [4, 3]  # seven are right when clean
    assert second.sizes == [4, 1]  # "up" breaks two
    assert third.sizes == [4]  # "down" breaks one


def test_every_attack_of_a_suite_gets_all_images_that_are_right_when_clean(model):
    first, second = Moving("up", up), Moving("down", down)
    run_suite(model, batches(4, 4, 2), [first, second], THREAT)
    assert first.sizes == second.sizes == [4, 3]


# --- attacks in parts ---


def test_an_attack_in_parts_says_what_stood_after_each(model):
    parts = [Moving("up", up), Moving("down", down), Moving("still", lambda x: x)]
    result = run_suite(model, batches(), [AutoAttack(attacks=parts)], THREAT)
    name = "AutoAttack (up, down, still)"
    assert list(result.outcomes) == ["clean", f"{name} after up", f"{name} after down", name]
    values = [record.value for record in result.records()]
    assert values == [0.7, 0.5, 0.4, 0.4, 0.4]
    assert list(result.radii) == [name]  # one picture, not one for every part
    attacked = [int(result.outcomes[attack].attacked.sum()) for attack in result.attacks]
    assert attacked == [7, 5, 7]  # the whole attack was tried on all that were right when clean
    # what a part broke stays as the part left it: 0.45 and 0.48 are class 1 now, 0.55 is class 0
    assert result.outcomes[name].prediction.tolist() == [0, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    assert result.outcomes[name].linf == pytest.approx([0, 0, 0.1, 0.1, 0, 0, 0, 0.1, 0, 0], abs=1e-6)
    broken_by = dict(zip(VALUES.tolist(), result.broken_by(), strict=True))
    assert broken_by[VALUES[2].item()] == f"{name} after up"
    assert broken_by[VALUES[7].item()] == f"{name} after down"


def test_an_attack_in_parts_costs_the_sum_of_its_parts():
    """And breaks what any of them breaks: each part on what is left, with its own draws, is what it is alone."""
    model = smooth()
    data = [pictures(model)]
    first, second = Noise(samples=2), PGD(steps=5)
    whole = run_suite(model, data, [AutoAttack(attacks=[first, second])], THREAT)
    alone = run_suite(model, data, [first, second], THREAT)
    name = "AutoAttack (noise x2, PGD-5)"
    assert 0 < alone.right("noise x2").sum() < alone.right("clean").sum()
    assert (alone.right("PGD-5") < alone.right("noise x2")).any()
    assert whole.right(name).tolist() == (alone.right("noise x2") & alone.right("PGD-5")).tolist()
    one, other = alone.outcomes["noise x2"], alone.outcomes["PGD-5"]
    for column in ("forwards", "backwards"):
        expected = getattr(one, column) + np.where(alone.right("noise x2"), getattr(other, column), 0)
        assert getattr(whole.outcomes[name], column).tolist() == expected.tolist()
    assert whole.outcomes[name].seconds > whole.outcomes[f"{name} after noise x2"].seconds > 0


def test_the_worst_case_took_as_long_as_the_attacks_together(model):
    def slow(x):
        time.sleep(0.05)
        return x

    result = run_suite(model, batches(), [AutoAttack(attacks=[Moving("a", slow), Moving("b", slow)])], THREAT)
    expected = result.outcomes["clean"].seconds + result.outcomes["AutoAttack (a, b)"].seconds
    assert by_metric(result)["worst case"].seconds == pytest.approx(expected, abs=0.002)


def test_parts_of_one_name_are_all_run(model, tmp_path):
    parts = [Moving("up", up), Moving("up", up), Moving("down", down)]
    result = run_suite(model, batches(), [AutoAttack(attacks=parts)], THREAT, state=State(tmp_path))
    assert result.right("AutoAttack (up, up, down)").tolist() == ROBUST


def test_a_strong_part_is_given_the_training_temperature():
    hot = TwoClasses(torch.full((2,), 0.5), bias=-0.5, scale=1e5)
    attack = AutoAttack(attacks=[FGSM(), Strong(FGSM())])
    result = run_suite(hot, batches(), [attack], THREAT, temperature=1e5)
    assert result.right(attack.name).tolist() == ROBUST


def test_a_model_without_gradients_can_be_attacked_without_them():
    """A black box: a quantised network, or one behind a network."""

    class Opaque(TwoClasses):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    result = run_suite(Opaque(torch.full((2,), 0.5), bias=-0.5), batches(), [Moving("up", up)], THREAT)
    assert result.right("up").tolist() == UP


def test_the_standard_attack_runs_its_four_parts(model):
    result = run_suite(model, batches(), [AutoAttack()], THREAT)
    assert result.attacks == [*(f"AutoAttack after {part}" for part in ("APGD-CE", "APGD-T", "FAB-T")), "AutoAttack"]
    assert result.right("AutoAttack").tolist() == ROBUST
    costs = [by_metric(result)[name] for name in result.attacks]
    # four images stand against all; Square alone costs each of them 1 + 5000 passes
    assert result.outcomes["AutoAttack"].forwards[ROBUST].min() > 5001
    assert costs[-1].forwards > costs[0].forwards > 0


def test_nothing_is_left_to_attack(model):
    """The first part breaks all that was right: the others are given nothing, and that is a result."""
    everything, nothing = Moving("mirror", lambda x: 1 - x), Moving("down", down)
    attack = AutoAttack(attacks=[everything, nothing, PGD(restarts=2), Square(queries=3)])
    result = run_suite(model, batches(4, 6), [attack], Threat("linf", 1.0))
    assert nothing.sizes == []
    values = [record.value for record in result.records()]
    assert values == [0.7, *[0.0] * 5]
    assert all((record.forwards, record.backwards) == (0, 0) for record in list(result.records())[1:])


# --- what is confirmed ---


def believing(monkeypatch, boundary):
    """Lets attacks search on a wrong copy, whose class changes elsewhere than at 0.5."""
    copy = TwoClasses(torch.full((2,), 0.5), bias=-boundary)
    monkeypatch.setattr("attacks.suite.prepared", lambda model, x: copy)


CREEP = PGD(steps=5, step_size=0.03, random_start=False)


def test_a_success_that_only_the_copy_sees_is_sought_again_on_the_model(model, monkeypatch):
    """The copy's boundary is at 0.465. Iterates of 0.45 there: 0.45, 0.48, taken for a success. On the model: 0.45,
    0.48, 0.51."""
    believing(monkeypatch, 0.465)
    result = run_suite(model, batches(4, 6), [CREEP], THREAT)
    assert result.right("PGD-5").tolist() == ROBUST
    outcome = result.outcomes["PGD-5"]
    by_value = dict(zip([round(value, 2) for value in VALUES.tolist()], outcome.forwards, strict=True))
    assert by_value == {
        0.10: 5, 0.30: 5, 0.90: 5, 0.70: 5,  # no success, nowhere
        0.45: 2 + 3,
        0.48: 1 + 2,  # taken for a success from the start; then 0.48, 0.51
        0.55: 4,  # down by 0.03 to 0.46, which is a success on both
        0.20: 0, 0.52: 0, 0.80: 0,  # wrong when clean
    }  # fmt: skip
    assert outcome.backwards.tolist() == outcome.forwards.tolist()
    assert result.examples["PGD-5"][2, 0, 0, 0] == pytest.approx(0.51)


def test_a_success_that_the_copy_does_not_see_counts(model, monkeypatch):
    """The model itself judges; a copy that errs the other way costs nothing but a second try."""
    believing(monkeypatch, 0.9)
    counting = Counting(model)
    result = run_suite(counting, batches(), [Moving("up", up)], THREAT)
    assert result.right("up").tolist() == UP
    assert counting.sizes[-2:] == [7, 2]  # it takes 0.70 and 0.55 for broken, in vain, but neither 0.45 nor 0.48


def test_an_example_outside_the_ball_is_not_sought_again(model, monkeypatch):
    believing(monkeypatch, 0.45)
    far = Moving("far", lambda x: (x + 0.04).clamp(0, 1))
    run_suite(model, batches(), [far], Threat("linf", 0.01))
    assert far.sizes == [7]


class Coarse(nn.Module):
    """In bfloat16 its class changes at 0.47, otherwise at 0.5."""

    def forward(self, x):
        z = x.flatten(1).mean(1) - 0.5 + (0.03 if torch.is_autocast_enabled("cpu") else 0.0)
        return torch.stack([torch.zeros_like(z), z], 1)


def test_a_search_in_bfloat16_is_judged_in_float32():
    result = run_suite(Coarse(), batches(), [Moving("rise", lambda x: x + 0.03)], THREAT, precision="bf16")
    broken = np.array(CLEAN) & ~result.right("rise")
    assert VALUES[torch.from_numpy(broken)].tolist() == pytest.approx([0.48])


def test_a_success_that_only_bfloat16_sees_is_sought_again():
    for precision in ("32", "bf16"):
        result = run_suite(Coarse(), batches(), [CREEP], THREAT, precision=precision)
        assert result.right("PGD-5").tolist() == ROBUST, precision


# --- passes ---


def passes(attack, model, top=1):
    record = by_metric(run_suite(model, batches(4, 6), [attack], THREAT, top=top))[attack.name]
    return record.forwards, record.backwards


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (FGSM(), (1, 1)),
        (EOT(FGSM(), samples=3), (3, 3)),
        (Strong(FGSM(), 2.0), (1, 1)),
        # 0.45 and 0.48 pass 0.5 by the first step, 0.55 too: two passes each. The four others are at the ball's edge
        # after two steps, where the third leaves them: four passes each.
        (PGD(steps=9, step_size=0.06, random_start=False), (22 / 7, 22 / 7)),
        (PGD(steps=3, step_size=0.001, random_start=False), (3, 3)),
        (Moving("still", lambda x: x), (0, 0)),
    ],
    ids=lambda value: value.name if isinstance(value, Attack) else "",
)
def test_passes_by_hand(model, attack, expected):
    assert passes(attack, model) == pytest.approx(expected, abs=1e-3)


def test_where_top_k_is_asked_for_every_step_is_made(model):
    assert passes(PGD(steps=9, step_size=0.06, random_start=False), model, top=2) == (9, 9)


def test_progress_tells_attack_images_and_what_is_robust_so_far(model):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    attack = AutoAttack(attacks=[Moving("up", up), Moving("down", down)])
    run_suite(model, batches(4, 6), [FGSM(), attack], THREAT, title="student", console=console)
    ends = [line.split() for line in Text.from_ansi(console.file.getvalue()).plain.splitlines()[-3:]]
    said = [" ".join(word for word in line if "━" not in word) for line in ends]
    assert [line.rsplit(" ", 1)[0] for line in said] == [
        "student FGSM 7/7 images robust 40.0%",
        "student AutoAttack (up, down) after up 7/7 images robust 50.0%",
        "student AutoAttack (up, down) 5/5 images robust 40.0%",
    ]


def test_an_attack_without_gradients_makes_forward_passes_alone(model):
    """Four images stand against ten draws and cost one pass for each draw; the others leave on the way."""
    result = run_suite(model, batches(), [Noise(samples=10)], THREAT)
    outcome = result.outcomes["noise x10"]
    assert outcome.forwards[ROBUST].tolist() == [10] * 4
    assert not outcome.backwards.any()
    assert (outcome.forwards[~np.array(CLEAN)] == 0).all()


# --- models that draw at random ---


class Noisy(nn.Module):
    """The margin with noise of a tenth: a single pass often says what the mean of many does not."""

    def forward(self, x):
        z = x.flatten(1).mean(1) - 0.5 + 0.1 * torch.randn(len(x))
        return torch.stack([torch.zeros_like(z), z], 1) * 20


@pytest.mark.parametrize("attack", [PGD(steps=10), EOT(PGD(steps=10), 4), PGD(steps=5, restarts=2)])
def test_a_lucky_pass_does_not_end_an_attack(attack):
    """An image at 0.45 is only broken by going all the way up; noise says so long before."""
    torch.manual_seed(0)
    x, y = torch.full((60, 1, 1, 2), 0.42), torch.zeros(60).long()
    result = run_suite(Noisy(), [(x, y, torch.arange(60))], [attack], THREAT, votes=400)
    assert result.right("clean").mean() == 1
    assert result.right(attack.name).mean() < 0.1


def test_no_draw_is_built_into_a_copy(monkeypatch):
    """A coin for the whole batch comes up the same twice in half of all cases; its generator tells."""

    class Coin(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            side = float(torch.rand(()) < 0.5)
            return self.conv(x + 0.01 * side).mean((2, 3))

    for seed in range(6):
        torch.manual_seed(seed)
        monkeypatch.setattr("attacks.suite.prepared", lambda *_: pytest.fail("a copy was made"))
        x, y = torch.rand(4, 1, 2, 2), torch.zeros(4).long()
        run_suite(Coin(), [(x, y, torch.arange(4))], [FGSM()], THREAT)
