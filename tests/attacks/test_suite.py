"""The suite, on a model whose every answer is known by hand."""

import numpy as np
import pytest
import torch
from attack_helpers import Counting, Moving, TwoClasses, untouched
from scipy import stats
from suite_helpers import (
    CLEAN,
    DOWN,
    LABELS,
    ROBUST,
    THREAT,
    UP,
    VALUES,
    assert_same,
    batches,
    by_metric,
    down,
    halves,
    pictures,
    smooth,
    up,
)
from torch import nn

from attacks import APGD, FGSM, PGD, AutoAttack, Square, Strong, SuiteResult, Threat, run_suite


@pytest.fixture
def model():
    return halves()


# --- what is measured ---


def test_records_by_hand(model):
    attacks = [Moving("up", up), Moving("down", down), FGSM(), PGD(steps=5)]
    records = by_metric(run_suite(model, batches(4, 6), attacks, THREAT))
    expected = {"clean": 7, "up": 5, "down": 6, "FGSM": 4, "PGD-5": 4, "worst case": 4}
    assert {name: record.value for name, record in records.items()} == {k: v / 10 for k, v in expected.items()}
    for name, record in records.items():
        assert record.n == 10
        interval = stats.binomtest(expected[name], 10).proportion_ci(method="wilson")
        assert (record.low, record.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
        assert record.threat == ("" if name == "clean" else "linf 0.1")
        assert record.seconds >= 0


def test_what_became_of_every_image(model):
    result = run_suite(model, batches(3, 7), [Moving("up", up), Moving("down", down), FGSM()], THREAT)
    assert result.index.tolist() == list(range(100, 110))
    assert result.label.tolist() == LABELS.tolist()
    clean = (VALUES > 0.5).long()
    assert result.outcomes["clean"].prediction.tolist() == clean.tolist()
    for name, right in {"clean": CLEAN, "up": UP, "down": DOWN, "FGSM": ROBUST, "worst case": ROBUST}.items():
        assert result.right(name).tolist() == right, name
    for name, right in {"up": UP, "down": DOWN, "FGSM": ROBUST}.items():
        # two classes: a correct image that is broken now has the other one, a wrong one keeps its prediction
        flipped = np.array(CLEAN) & ~np.array(right)
        assert result.outcomes[name].prediction.tolist() == np.where(flipped, 1 - clean.numpy(), clean.numpy()).tolist()
        outcome = result.outcomes[name]
        assert outcome.rank.tolist() == (~np.array(right)).astype(int).tolist()  # of two classes
        assert outcome.linf == pytest.approx(np.where(CLEAN, 0.1, 0.0), abs=1e-6)
        assert outcome.l2 == pytest.approx(np.where(CLEAN, 0.02**0.5, 0.0), abs=1e-6)  # two pixels
        assert outcome.attacked.tolist() == CLEAN
        assert outcome.threat == "linf 0.1"


def test_the_worst_case_is_of_all_attacks_at_once_and_no_mean(model):
    """Each of two attacks leaves some standing that the other breaks: 5 and 6 of ten, and 4 against both."""
    records = by_metric(run_suite(model, batches(), [Moving("up", up), Moving("down", down)], THREAT))
    assert (records["up"].value, records["down"].value, records["worst case"].value) == (0.5, 0.6, 0.4)


def test_images_that_are_wrong_when_clean_are_not_attacked(model):
    """An attack that moves them back to the right side would make them count as robust."""
    attack = Moving("mirror", lambda x: 1 - x, Threat("linf", 1.0))
    result = run_suite(model, batches(4, 6), [attack], THREAT)
    assert attack.sizes == [6, 1]  # of 4 all are right, of 6 these three: together a full batch and one more
    assert result.right("mirror linf 1").tolist() == [False] * 10
    assert by_metric(result)["mirror linf 1"].value == 0


def test_a_batch_without_a_correct_image_is_not_attacked(model):
    attack = Moving("up", up)
    wrong = [batch for batch in batches(8, 2) if len(batch[0]) == 2]
    result = run_suite(model, wrong, [attack, PGD(restarts=2)], THREAT)
    assert attack.sizes == []
    assert [record.value for record in result.records()] == [0.0] * 4
    assert result.outcomes["up"].prediction.tolist() == result.outcomes["clean"].prediction.tolist()


def test_every_image_is_judged_once_when_clean_and_the_correct_ones_once_per_attack(model):
    counting = Counting(model)
    run_suite(counting, batches(4, 6), [Moving("up", up), Moving("down", down)], THREAT)
    looked = [4, 4, 4]  # how many classes there are, and whether a few images' logits are the same twice
    assert counting.sizes == [4, 6, *looked, 6, 1, 6, 1]


def test_without_attacks_there_is_clean_accuracy_alone(model):
    (record,) = run_suite(model, batches(), [], THREAT).records()
    assert (record.metric, record.value, record.n) == ("clean", 0.7, 10)


def test_an_attacks_own_threat_goes_before_the_suites(model):
    wide = Moving("up", lambda x: (x + 0.3).clamp(0, 1), Threat("linf", "3/10"))
    result = run_suite(model, batches(), [wide, FGSM(), FGSM(Threat("linf", 0.3))], THREAT)
    records = by_metric(result)
    assert records["up linf 3/10"].threat == "linf 3/10"
    assert records["FGSM"].threat == "linf 0.1"
    assert records["FGSM linf 0.3"].threat == "linf 0.3"  # one attack at two radii is no repetition
    assert (records["up linf 3/10"].value, records["FGSM"].value) == (0.4, 0.4)  # 0.3 goes wrong, 0.55 does not


def test_an_l2_threat_is_judged_in_l2(model):
    """Both pixels move by 0.1, by 0.1414 together."""
    for eps, right in ((0.14, CLEAN), (0.15, UP)):
        result = run_suite(model, batches(), [Moving("up", up)], Threat("l2", eps))
        assert result.right("up").tolist() == right
        assert result.radii == {"up": None}


def test_the_datasets_box_is_the_threats(model):
    """Images in [-1, 1] are neither refused nor clamped."""
    images = torch.tensor([-0.9, 0.9]).reshape(2, 1, 1, 1).expand(2, 1, 1, 2).contiguous()
    shifted = TwoClasses(torch.ones(2))
    whole = [(images, torch.tensor([0, 1]), torch.arange(2))]
    result = run_suite(shifted, whole, [FGSM()], Threat("linf", 0.1, (-1.0, 1.0)))
    assert [record.value for record in result.records()] == [1.0, 1.0, 1.0]


def test_examples_are_the_first_images_and_their_adversarial_ones(model):
    result = run_suite(model, batches(2, 8), [FGSM()], THREAT, examples=5)
    assert result.shown.tolist() == [100, 101, 102, 103, 104]
    assert result.examples.keys() == {"clean", "FGSM"}
    clean, adversarial = result.examples["clean"], result.examples["FGSM"]
    assert clean[:, 0, 0] == pytest.approx(VALUES[:5, None].expand(-1, 2).numpy())
    # 0.20 is wrong when clean and stays as it is
    assert adversarial[:, 0, 0, 0] == pytest.approx([0.20, 0.40, 0.55, 0.58, 0.20])


def test_an_image_that_was_not_broken_shows_its_last_example(model):
    result = run_suite(model, batches(3, 7), [AutoAttack(attacks=[Moving("up", up), Moving("down", down)])], THREAT)
    (name,) = result.radii
    # the first four by "up", of which two stand and are moved by "down"; 0.20 was never attacked
    assert result.examples[name][:5, 0, 0, 0] == pytest.approx([0.0, 0.2, 0.55, 0.58, 0.2], abs=1e-6)


# --- contracts ---


def test_the_model_is_untouched(network):
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    attacks = [FGSM(), PGD(steps=2, restarts=2), PGD(steps=3, batchnorm="train"), Strong(FGSM())]
    with untouched(network):
        run_suite(network, [(x, y, torch.arange(6))], attacks, THREAT, temperature=20.0)


def test_the_model_is_untouched_when_the_suite_fails(network):
    broken = Moving("broken", lambda x: x * float("nan"))
    x = torch.rand(6, 3, 8, 8)
    y = network.eval()(x).argmax(1)
    network.train()
    with untouched(network), pytest.raises(ValueError, match=r"finite|box"):
        run_suite(network, [(x, y, torch.arange(6))], [broken], THREAT)


def test_a_suite_runs_in_inference_mode(network):
    """As Lightning's ``test`` does, unless it is told otherwise."""
    x = torch.rand(6, 3, 8, 8)
    y = network.eval()(x).argmax(1)
    expected = run_suite(network, [(x, y, torch.arange(6))], [PGD(steps=2)], THREAT)
    with torch.inference_mode():
        found = run_suite(network, [(x.clone(), y.clone(), torch.arange(6))], [PGD(steps=2)], THREAT)
    assert_same(found, expected)


def test_judged_in_eval_mode(network):
    """A model in training mode is judged as it will be used: without dropout, by its running averages."""
    x = torch.rand(40, 3, 8, 8)
    expected = network.eval()(x).argmax(1)
    network.train()
    result = run_suite(network, [(x, expected, torch.arange(40))], [], THREAT)
    assert result.outcomes["clean"].prediction.tolist() == expected.tolist()


def test_judged_in_float32_whatever_surrounds_the_call():
    """Seven bits of mantissa take 0.5005 for 0.5, which would be class 0."""
    x = torch.full((4, 1, 1, 2), 0.5005)
    model = TwoClasses(torch.full((2,), 0.5), bias=-0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).argmax(1).tolist() == [0] * 4
        result = run_suite(model, [(x, torch.ones(4).long(), torch.arange(4))], [FGSM()], Threat("linf", 1e-4))
    assert result.right("clean").all()
    assert result.right("FGSM").all()


RANDOM = (
    PGD(steps=2, restarts=3),
    PGD(steps=4, loss="margin"),
    FGSM(),
    AutoAttack(attacks=[APGD(steps=3), Square(queries=5)]),
)


def test_results_do_not_depend_on_the_split_into_batches():
    model = smooth()
    whole = pictures(model)
    results = [
        run_suite(model, list(zip(*(part.split(size) for part in whole), strict=True)), RANDOM, THREAT, seed=3)
        for size in (30, 7, 1)
    ]
    assert 0 < results[0].right("worst case").sum() < results[0].right("clean").sum()
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_results_do_not_depend_on_the_order_of_the_images():
    model = smooth()
    whole = pictures(model)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    straight = run_suite(model, [whole], RANDOM, THREAT)
    mixed = run_suite(model, [tuple(part[order] for part in whole)], RANDOM, THREAT)
    assert mixed.index.tolist() == whole[2][order].tolist()
    assert_same(SuiteResult.merge([mixed]), straight)


def test_other_seeds_draw_otherwise():
    model = smooth()
    data = [pictures(model)]
    one, other = (
        run_suite(model, data, [PGD(steps=1, step_size=0.0)], Threat("l2", 1.0), seed=seed).outcomes["PGD-1"].l2
        for seed in (0, 1)
    )
    assert not np.allclose(one, other)


def test_results_do_not_depend_on_the_attacks_before():
    """Draws follow from image and seed: an attack gives the same in any company."""
    model = smooth()
    data = [pictures(model)]
    together = run_suite(model, data, RANDOM, THREAT)
    alone = run_suite(model, data, RANDOM[1:2], THREAT)
    name = RANDOM[1].name
    assert together.outcomes[name].prediction.tolist() == alone.outcomes[name].prediction.tolist()
    assert together.outcomes[name].l2 == pytest.approx(alone.outcomes[name].l2)


# --- names ---


def test_two_attacks_of_one_name_are_refused(model):
    with pytest.raises(ValueError, match="PGD-10"):
        run_suite(model, batches(), [PGD(), PGD(random_start=False)], THREAT)


@pytest.mark.parametrize(
    ("attack", "temperature", "kept"),
    [
        (Strong(FGSM()), 1.0, False),
        (Strong(FGSM()), 20.0, True),
        (Strong(FGSM(), 1.0), 20.0, False),
        (Strong(FGSM(), 20.0), 1.0, True),
    ],
    ids=["untempered model", "tempered model", "T=1 by hand", "T=20 by hand"],
)
def test_a_strong_attack_at_temperature_one_is_the_weak_one_and_left_out(model, attack, temperature, kept):
    result = run_suite(model, batches(), [FGSM(), attack], THREAT, temperature=temperature)
    assert any(name.startswith("FGSM strong") for name in result.outcomes) == kept
    assert any(name.startswith("FGSM strong") for name in by_metric(result)) == kept
    assert "FGSM" in result.outcomes


def test_strong_attacks_are_given_the_training_temperature(model):
    """Saturated at 1e4, the weak attack does nothing; divided by 1e4 it breaks what can be broken."""
    hot = TwoClasses(torch.full((2,), 0.5), bias=-0.5, scale=1e5)
    result = run_suite(hot, batches(), [FGSM(), Strong(FGSM())], THREAT, temperature=1e5)
    assert result.right("FGSM").tolist() == CLEAN
    assert result.right("FGSM strong").tolist() == ROBUST


# --- draws and votes ---


def test_official_draws_are_those_of_one_generator_for_every_batch(model):
    """Seeded anew for each batch, and drawn for the images of the batch together, as the authors' AutoAttack does."""
    whole = batches()[0]
    right = torch.tensor(CLEAN)
    data = list(zip(*(part[right].split([4, 3]) for part in whole), strict=True))
    attack = PGD(steps=1, step_size=0.0)
    result = run_suite(model, data, [attack], THREAT, seed=5, rng="official")
    drawn = [torch.rand(len(x), 1, 1, 2, generator=torch.Generator().manual_seed(5)) for x, _, _ in data]
    expected = (whole[0][right] + 0.2 * torch.cat(drawn) - 0.1).clamp(0, 1)
    assert result.examples["PGD-1"] == pytest.approx(expected.numpy(), abs=1e-6)


def test_draws_of_an_image_are_its_own_unless_they_are_to_be_official():
    model = smooth()
    x, y, index = pictures(model)
    attack = PGD(steps=1, step_size=0.0)

    def lengths(split, rng):
        data = list(zip(x.split(split), y.split(split), index.split(split), strict=True))
        return run_suite(model, data, [attack], Threat("l2", 1.0), rng=rng).outcomes["PGD-1"].l2

    assert lengths(30, "image") == pytest.approx(lengths(4, "image"))
    assert not np.allclose(lengths(30, "official"), lengths(4, "official"))


class Noisy(nn.Module):
    """A margin of 0.5 under noise of deviation 1: right in 69 % of its passes."""

    def forward(self, x):
        z = x.flatten(1).sum(1).sign() * 0.5
        return torch.stack([-z / 2 + 0.707 * torch.randn(len(x)), z / 2 + 0.707 * torch.randn(len(x))], 1)


def test_votes_make_a_randomised_models_verdict_stable():
    x = torch.cat([torch.full((100, 1, 1, 2), value) for value in (-0.5, 0.5)])
    data = [(x, torch.arange(2).repeat_interleave(100), torch.arange(200))]
    threat = Threat("linf", 0.1, (-1.0, 1.0))
    one, many = (run_suite(Noisy(), data, [Moving("still", lambda x: x)], threat, votes=votes) for votes in (1, 101))
    assert 0.6 < one.right("clean").mean() < 0.8
    assert one.right("still").mean() < 0.6  # twice by chance: what was right may be called broken
    assert many.right("still").mean() > 0.99
    records = by_metric(many)
    assert (records["clean"].forwards, records["still"].forwards) == (101, 0)  # what judges an attack costs it nothing
