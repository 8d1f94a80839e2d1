"""What every image costs an attack, and what an attack notes by the way."""

import pytest
import torch
from attack_helpers import Counting, Linear, classifier, draws
from torch import nn

from attacks import APGD, EOT, FGSM, MIFGSM, PGD, Noise, Strong, Threat, Transfer, ascend, narrow, tempered
from attacks.objectives import Goal
from attacks.subject import Ledger, Subject, note
from attacks.wrappers import Expected

TINY = Threat("linf", 1e-6)  # breaks nothing that was right


def steadfast(size=6):
    """A network, and labels of which the last two are wrong from the start."""
    model = classifier((3, 4, 4), torch.float64)
    x = torch.rand(size, 3, 4, 4).double()
    y = model(x).argmax(1)
    y[-2:] = (y[-2:] + 1) % 4
    return model, x, y


def cost(attack, model, x, y):
    """Forward and backward passes of every image."""
    ledger = Ledger(len(x), x.device)
    attack(Subject(model, ledger), x, y, draws(len(x)))
    return ledger.forwards.tolist(), ledger.backwards.tolist()


# --- passes ---


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (FGSM(), 1, 1),
        (MIFGSM(steps=5), 5, 5),
        (PGD(steps=7), 7, 7),
        (PGD(steps=7, restarts=3), 3 * 8, 3 * 7),  # and a pass to judge each start
        (PGD(steps=4, loss="margin", targets=3), 1 + 3 * 5, 3 * 4),  # and one to rank the classes
        (APGD(steps=9), 10, 10),
        (APGD(steps=9, restarts=2), 2 * 11, 2 * 10),
        (Noise(samples=4), 4, 0),
        (Strong(PGD(steps=7, restarts=3), 9.0), 3 * 8, 3 * 7),
        (Strong(FGSM(), 1.0), 1, 1),
        (EOT(FGSM(), 5), 5, 5),
        (EOT(PGD(steps=3, restarts=2), 5), 5 * 8, 5 * 6),
        (Strong(EOT(FGSM(), 5), 2.0), 5, 5),
        (Transfer(PGD(steps=3), classifier((3, 4, 4), torch.float64, 1)), 0, 0),
    ],
    ids=lambda given: given.name if hasattr(given, "name") else "",
)
def test_passes_of_images_that_stand(attack, forwards, backwards):
    model, x, y = steadfast()
    assert cost(attack.under(TINY), model, x[:4], y[:4]) == ([forwards] * 4, [backwards] * 4)


@pytest.mark.parametrize(
    ("attack", "standing", "wrong"),
    [
        (PGD(steps=7, random_start=False, step_size=1e-9), 7, 1),
        (MIFGSM(steps=7), 7, 1),
        (APGD(steps=7), 8, 1),
        (EOT(PGD(steps=7, random_start=False, step_size=1e-9), 3), 21, 21),  # for models that draw: nobody leaves
        (Strong(APGD(steps=7), 3.0), 8, 1),
        (Noise(samples=7), 7, 1),
        (PGD(steps=7, step_size=1e-9, restarts=3), 3 * 8, 2),
        (APGD(steps=7, restarts=3), 3 * 9, 2),
    ],
    ids=lambda given: given.name if hasattr(given, "name") else "",
)
def test_in_evaluation_a_broken_image_costs_nothing_more(attack, standing, wrong):
    forwards, backwards = cost(attack.under(TINY).evaluating(), *steadfast())
    assert forwards == [standing] * 4 + [wrong] * 2
    assert all(back <= forward for back, forward in zip(backwards, forwards, strict=True))


def test_images_broken_at_different_steps_cost_what_they_took():
    """Margins of 0.01, 0.03, ... against a slope of 1 and steps of 0.02; those of the first are wrong at once."""
    x = 0.5 - torch.tensor([0.2, 0.05, -0.01, 0.03, 0.01]).double().reshape(5, 1, 1, 1)
    model = Linear(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([0.5, 0.0]).double())
    attack = PGD(Threat("linf", 0.15), steps=6, step_size=0.02, random_start=False).evaluating()
    forwards, backwards = cost(attack, model, x, torch.zeros(5).long())
    assert forwards == backwards == [6, 4, 1, 3, 2]


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("attack", [PGD, APGD])
def test_the_budget_of_a_targeted_attack_holds_the_pass_that_ranks_the_classes(attack, targets):
    model, x, y = steadfast()
    run = attack(TINY, steps=3, loss="margin", targets=targets)
    assert max(cost(run, model, x, y)[0]) == run.budget


@pytest.mark.parametrize(
    "attack", [FGSM(), MIFGSM(steps=5), PGD(steps=3, restarts=2), APGD(steps=3, restarts=2), EOT(PGD(steps=2), 3)]
)
def test_the_budget_is_what_an_image_that_stands_costs(attack):
    model, x, y = steadfast()
    assert cost(attack.under(TINY), model, x[:4], y[:4])[0] == [attack.budget] * 4


def test_the_watch_is_called_after_every_pass():
    calls = []
    model, x, y = steadfast()
    counting = Counting(model)
    ledger = Ledger(6, x.device, lambda ledger: calls.append(float(ledger.forwards.sum())))
    PGD(TINY, steps=3)(Subject(counting, ledger), x, y, draws(6))
    assert calls == [6, 12, 18]
    assert counting.sizes == [6] * 3


def test_a_subject_changes_nothing_about_the_model():
    model, x, y = steadfast()
    attack = PGD(Threat("linf", 0.1), steps=3, restarts=2).evaluating()
    found = attack(Subject(model, Ledger(6, x.device)), x, y, draws(6))
    assert found.equal(attack(model, x, y, draws(6)))


def test_samples_and_parts_are_spread_over_the_images_they_belong_to():
    model, x, _ = steadfast()
    ledger = Ledger(6, x.device)
    subject = Subject(model, ledger)
    with torch.no_grad():
        subject(x.repeat(4, 1, 1, 1))  # four samples of each
    assert ledger.forwards.tolist() == [4] * 6
    part = narrow(narrow(subject, torch.tensor([5, 3, 1])), torch.tensor([True, False, True]))
    ascend(part, x[[5, 1]], Goal("margin", torch.tensor([0, 1])))
    assert ledger.forwards.tolist() == [4, 5, 4, 4, 4, 5]
    assert ledger.backwards.tolist() == [0, 1, 0, 0, 0, 1]
    with torch.no_grad():
        narrow(subject, torch.tensor([], dtype=torch.long))(x[:0])
        part(x[:1])  # half of a pass for each of two
    assert ledger.forwards.tolist() == [4, 5.5, 4, 4, 4, 5.5]
    assert ledger.backwards.sum() == 2


def test_an_image_that_is_attacked_in_several_ways_at_once_pays_for_each():
    """As towards every class at a time, by a narrowing that names it more than once."""
    model, x, _ = steadfast()
    ledger = Ledger(6, x.device)
    rows = torch.tensor([4, 0, 4, 4])
    ascend(narrow(Subject(model, ledger), rows), x[rows], Goal("margin", torch.arange(4)))
    assert ledger.forwards.tolist() == [1, 0, 0, 0, 3, 0]
    assert ledger.backwards.tolist() == [1, 0, 0, 0, 3, 0]


def test_a_backward_pass_for_every_class_counts_each():
    """As an attack does that asks for the whole Jacobian."""
    model, x, _ = steadfast()
    ledger = Ledger(6, x.device)
    x.requires_grad_(True)
    logits = Subject(model, ledger)(x)
    for column in logits.T:
        torch.autograd.grad(column.sum(), x, retain_graph=True)
    assert ledger.forwards.tolist() == [1] * 6
    assert ledger.backwards.tolist() == [4] * 6


# --- notes ---


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda subject: subject,
        lambda subject: tempered(subject, 3.0),
        lambda subject: Expected(subject, 4),
        lambda subject: Expected(tempered(subject, 3.0), 2),
    ],
    ids=["plain", "tempered", "expected", "both"],
)
def test_a_note_lands_on_the_rows_of_its_images(wrapped):
    ledger = Ledger(5, torch.device("cpu"))
    model = wrapped(Subject(nn.Identity(), ledger))
    note(narrow(model, torch.tensor([3, 1])), "length", torch.tensor([0.3, 0.1]))
    assert ledger.notes["length"].nan_to_num(-1).tolist() == pytest.approx([-1, 0.1, -1, 0.3, -1])
    note(model, "length", torch.arange(5))  # the last word stands
    assert ledger.notes["length"].tolist() == [0, 1, 2, 3, 4]
    note(narrow(narrow(model, torch.tensor([4, 2, 0])), torch.tensor([1])), "curve", torch.tensor([[1.0, 2.0, 3.0]]))
    assert ledger.notes["curve"].shape == (5, 3)
    assert ledger.notes["curve"][2].tolist() == [1, 2, 3]
    assert ledger.notes["curve"].isnan().sum() == 12


@pytest.mark.parametrize("model", [nn.Identity(), Counting(nn.Identity()), tempered(nn.Identity(), 3.0)])
def test_without_a_ledger_a_note_goes_nowhere(model):
    note(model, "length", torch.arange(3))


def test_what_is_noted_about_a_source_is_not_said_of_the_target():
    class Noting(FGSM):
        def perturb(self, model, x, y, draws):
            note(model, "seen", torch.ones(len(x)))
            return super().perturb(model, x, y, draws)

    model, x, y = steadfast()
    ledger = Ledger(6, x.device)
    Transfer(Noting(TINY), model)(Subject(model, ledger), x, y)
    assert ledger.notes == {}
    Strong(Noting(TINY), 3.0)(Subject(model, ledger), x, y)
    assert ledger.notes["seen"].tolist() == [1] * 6
