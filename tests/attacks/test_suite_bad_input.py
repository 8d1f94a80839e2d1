"""What a suite refuses, in one sentence, and what it only warns of."""

import numpy as np
import pytest
import torch
from attack_helpers import Moving, TwoClasses, untouched
from suite_helpers import CLEAN, LABELS, ROBUST, THREAT, batches, halves, up
from torch import nn

from attacks import APGD, FGSM, PGD, AutoAttack, DeepFool, Square, Threat, run_suite
from attacks.state import State


@pytest.fixture
def model():
    return halves()


def refused(model, x, match, attacks=(), y=None):
    labels = LABELS[: len(x)] if y is None else y
    with pytest.raises(ValueError, match=match) as caught:
        run_suite(model, [(x, labels, torch.arange(len(x)))], list(attacks), THREAT)
    message = str(caught.value)
    assert len(message.split()) >= 5, "a sentence, please"


def test_images_that_are_no_images_are_refused(model):
    x = batches()[0][0]
    refused(model, (x * 255).to(torch.uint8), r"(?i)float|uint8")
    refused(model, x * 255, "box")
    refused(model, x - 0.5, "box")
    refused(model, x * float("nan"), "(?i)finite|nan|box")


def test_examples_outside_the_box_are_refused(model):
    refused(model, batches()[0][0], "box", [Moving("out", lambda x: x + 1)])


def test_examples_that_are_not_finite_are_refused(model):
    refused(model, batches()[0][0], "(?i)finite|nan|box", [Moving("out", lambda x: x * float("nan"))])


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (LABELS + 1, "Labels .* 1 to 2, .* 2 classes"),
        (LABELS - 1, "Labels .* -1 to 0, .* 2 classes"),
        (LABELS.float(), "Labels .*float32"),
    ],
    ids=["too high", "negative", "float"],
)
def test_labels_that_are_no_classes_are_refused(model, labels, match):
    refused(model, batches()[0][0], match, [FGSM()], labels)


@pytest.mark.parametrize("shape", [(10,), (5, 2), (10, 2, 1)], ids=str)
def test_what_is_no_logits_is_refused(shape):
    class Shaped(nn.Module):
        def forward(self, x):
            return torch.zeros(shape)

    refused(Shaped(), batches()[0][0], r"expected \(images, classes\)")


@pytest.mark.parametrize(
    "setting",
    [{"rng": "torch"}, {"precision": "16"}, {"votes": 0}, {"top": 0}],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_do_not_exist_are_refused(model, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        run_suite(model, batches(), [FGSM()], THREAT, **setting)


def test_probabilities_are_judged_like_logits():
    """Only their order counts, and the margin needs no more; what is lost is for the diagnostics to say."""
    model = nn.Sequential(halves(), nn.Softmax(dim=1))
    result = run_suite(model, batches(), [FGSM(loss="margin")], THREAT)
    assert result.right("clean").tolist() == CLEAN
    assert result.right("FGSM margin").tolist() == ROBUST


def test_a_radius_in_bytes_is_warned_of_and_breaks_everything(model):
    with pytest.warns(UserWarning, match="8/255"):
        threat = Threat("linf", 8)
    result = run_suite(model, batches(), [FGSM()], threat)
    assert not result.right("FGSM").any()


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_for_a_loss_or_its_targets_are_warned_of_and_attacked_all_the_same(classes):
    model, data = Classes(classes), batches()
    attacks = [APGD(loss="dlr", steps=5), APGD(loss="dlr", steps=5, targets=9)]
    with pytest.warns(UserWarning, match="classes") as warned:
        result = run_suite(model, data, attacks, THREAT)
    said = {str(warning.message) for warning in warned}
    assert any(f"9 target classes were asked for, the model has {classes - 1}" in text for text in said)
    assert any("Targeted DLR needs at least 4 classes" in text for text in said)
    assert any("DLR needs at least 3 classes" in text for text in said) == (classes == 2)
    for attack in attacks:
        assert result.right(attack.name).tolist() == ROBUST


class Classes(nn.Module):
    """``halves`` with classes beside the two that are never likely, and never equally so."""

    def __init__(self, classes):
        super().__init__()
        self.two, self.more = halves(), classes - 2

    def forward(self, x):
        z = self.two(x)
        return torch.cat([z, z.sum(1, keepdim=True) * 0.1 - torch.arange(1.0, self.more + 1)], 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    """argmax of NaN is class 0, which is right for a tenth of CIFAR-10."""

    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), value) * x.flatten(1).sum(1, keepdim=True)

    refused(Broken(), batches()[0][0], "(?i)finite")


@pytest.mark.parametrize("data", [[], [(torch.zeros(0, 1, 1, 2), torch.zeros(0).long(), torch.zeros(0).long())]])
def test_no_images_are_refused(model, data):
    with pytest.raises(ValueError, match="images"):
        run_suite(model, data, [FGSM()], THREAT)


def test_an_example_outside_the_ball_is_no_success(model):
    """Minimum-norm attacks have no ball: given a threat model they succeed where they stay within its radius."""
    far = Moving("far", lambda x: 1 - x)  # breaks every image; of the correct ones three move by at most 0.1
    result = run_suite(model, batches(), [far], Threat("linf", 0.11))
    assert result.right("far").tolist() == ROBUST


def test_logits_that_are_no_numbers_on_the_way_lose_nothing_that_was_done(tmp_path):
    """A model that fails near 1, where the first image of the second batch gets."""

    class Fails(TwoClasses):
        def forward(self, x):
            return torch.where(x.flatten(1).amax(1, keepdim=True) > 0.96, torch.nan, super().forward(x))

    model, state, attack = Fails(torch.full((2,), 0.5), bias=-0.5), State(tmp_path), Moving("up", up)
    with untouched(model), pytest.raises(ValueError, match="not finite"):
        run_suite(model, batches(4, 4, 2), [attack], THREAT, state=state)
    assert attack.sizes == [4, 3]
    (kept,) = state.folder.iterdir()
    assert np.load(kept)["where"].tolist() == [0, 1, 2, 3]


def test_a_batch_without_images_is_passed_over(model):
    empty = torch.zeros(0, 1, 1, 2), torch.zeros(0).long(), torch.zeros(0).long()
    result = run_suite(model, [empty, *batches()], [FGSM()], THREAT)
    assert result.right("FGSM").tolist() == ROBUST


@pytest.mark.parametrize("labels", [LABELS[:9], LABELS[:, None]], ids=["too few", "of another shape"])
def test_labels_that_do_not_fit_the_images_are_refused(model, labels):
    refused(model, batches()[0][0], "(?i)label", [FGSM()], labels)


def test_what_is_no_logits_is_refused_with_votes_too():
    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1).sum(1)

    with pytest.raises(ValueError, match="expected"):
        run_suite(Flat(), batches(), [FGSM()], THREAT, votes=2)


def test_images_of_sixteen_bits_are_refused(model):
    """They round an example out of its ball, so that no success would count."""
    for dtype in (torch.float16, torch.bfloat16):
        refused(model, batches()[0][0].to(dtype), "float32")


def test_an_attack_without_limit_is_no_part_of_autoattack():
    with pytest.raises(ValueError, match="DeepFool unlimited"):
        AutoAttack(attacks=[FGSM(), DeepFool(unlimited=True)])


def test_a_tuple_is_refused(model):
    class Pair(nn.Module):
        def forward(self, x):
            return model(x), None

    with pytest.raises(ValueError, match="tuple"):
        run_suite(Pair(), batches(), [FGSM()], THREAT)


def test_a_gradient_attack_on_what_has_none_is_refused(model):
    class Opaque(TwoClasses):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ValueError, match="no gradient"):
        run_suite(Opaque(torch.full((2,), 0.5), bias=-0.5), batches(), [FGSM()], THREAT)


@pytest.mark.parametrize("attack", [PGD(restarts=2), APGD(targets=1, loss="dlr"), Square(), DeepFool(), AutoAttack()])
def test_top_k_is_refused_of_attacks_that_stop_at_the_first_change(model, attack):
    with pytest.raises(ValueError, match="top=2"):
        run_suite(model, batches(), [attack], THREAT, top=2)
