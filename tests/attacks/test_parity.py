"""The same attacks in other libraries, on a small network trained on digits: image by image where the draws are the
same, within sampling noise where they are not."""

import pytest
import torch
from attack_helpers import broken, draws
from scipy import stats

from attacks import APGD, FGSM, MIFGSM, PGD, Threat
from attacks.draws import OfficialDraws

NORMS = {"linf": ("Linf", 0.1), "l2": ("L2", 0.6)}
NORM = pytest.mark.parametrize("norm", NORMS)


def by_chance(ours, theirs):
    """Whether two attacks' flags may differ by their draws alone: McNemar's exact test."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return only_ours == only_theirs or stats.binomtest(only_ours, only_ours + only_theirs).pvalue > 1e-3


def telling(flags):
    """Whether there is something to compare: some images are broken and some are not."""
    return 0.05 < flags.double().mean() < 0.95


# --- AutoAttack's APGD ---


def official(model, x, y, norm, eps, kind, steps, restarts=1, targets=9, **how):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    given = {"n_iter": steps, "norm": norm, "eps": eps, "n_restarts": restarts, "seed": 0, "device": "cpu"}
    with torch.random.fork_rng():
        if kind == "targeted":
            attack = base.APGDAttack_targeted(model, n_target_classes=targets, **given)
        else:
            attack = base.APGDAttack(model, loss=kind, **given)
        return attack.perturb(x, y, **how)


@NORM
@pytest.mark.parametrize("kind", ["ce", "dlr", "targeted"])
@pytest.mark.parametrize(
    ("count", "steps", "restarts"), [(100, 20, 1), (40, 10, 2), pytest.param(400, 100, 1, marks=pytest.mark.slow)]
)
def test_apgd_breaks_the_images_that_the_authors_code_breaks(norm, kind, count, steps, restarts, digits):
    model, x, y = digits[0], digits[1][:count], digits[2][:count]
    name, eps = NORMS[norm]
    theirs = broken(model, official(model, x, y, name, eps, kind, steps, restarts), y)
    assert telling(theirs)
    loss, targets = ("dlr", 9) if kind == "targeted" else (kind, 0)
    attack = APGD(Threat(norm, eps), steps, restarts, loss, targets)
    for run in (attack, attack.evaluating()):
        drawn = OfficialDraws(torch.arange(len(x)), 0)
        assert broken(model, run(model, x, y, drawn), y).equal(theirs)


@NORM
@pytest.mark.parametrize("kind", ["ce", "dlr"])
def test_apgd_returns_the_examples_of_the_authors_code(norm, kind, digits):
    """Of broken images a point that broke them, of others the best one; but for rounding that a sign makes a step."""
    model, x, y = digits[0], digits[1][:150], digits[2][:150]
    name, eps = NORMS[norm]
    theirs, best = (official(model, x, y, name, eps, kind, 20, best_loss=best) for best in (False, True))
    ours = APGD(Threat(norm, eps), 20, loss=kind)(model, x, y, OfficialDraws(torch.arange(150), 0))
    flags = broken(model, theirs, y)
    assert telling(flags)
    expected = torch.where(flags[:, None, None, None], theirs, best)
    assert ((ours - expected).abs().flatten(1).amax(1) < 1e-5).double().mean() > 0.9


@NORM
def test_with_draws_of_our_own_apgd_is_as_strong(norm, digits):
    model, x, y = digits
    name, eps = NORMS[norm]
    theirs = broken(model, official(model, x, y, name, eps, "ce", 10), y)
    ours = broken(model, APGD(Threat(norm, eps), 10)(model, x, y, draws(len(x))), y)
    assert telling(theirs)
    assert by_chance(ours, theirs)


# --- foolbox ---


@pytest.fixture
def foolbox():
    return pytest.importorskip("foolbox")


@NORM
def test_pgd_without_a_random_start_gives_foolboxs_examples(norm, digits, foolbox):
    model, x, y = digits
    name, eps = NORMS[norm]
    theirs = getattr(foolbox.attacks, f"{name}PGD")(abs_stepsize=eps / 4, steps=5, random_start=False)
    _, expected, flags = theirs(foolbox.PyTorchModel(model, (0, 1)), x, y, epsilons=eps)
    ours = PGD(Threat(norm, eps), 5, step_size=eps / 4, random_start=False)(model, x, y)
    assert telling(flags)
    assert broken(model, ours, y).equal(flags)
    assert ((ours - expected).abs().flatten(1).amax(1) < 1e-4).double().mean() > 0.95


@NORM
def test_pgd_from_random_starts_is_as_strong_as_foolboxs(norm, digits, foolbox):
    model, x, y = digits
    name, eps = NORMS[norm]
    theirs = getattr(foolbox.attacks, f"{name}PGD")(abs_stepsize=eps / 4, steps=10)
    _, _, flags = theirs(foolbox.PyTorchModel(model, (0, 1)), x, y, epsilons=eps)
    ours = PGD(Threat(norm, eps), 10, step_size=eps / 4)(model, x, y, draws(len(x)))
    assert telling(flags)
    assert by_chance(broken(model, ours, y), flags)


@NORM
def test_fgsm_gives_foolboxs_examples(norm, digits, foolbox):
    model, x, y = digits
    eps = NORMS[norm][1]
    theirs = {"linf": foolbox.attacks.LinfFastGradientAttack, "l2": foolbox.attacks.L2FastGradientAttack}[norm]()
    _, expected, flags = theirs(foolbox.PyTorchModel(model, (0, 1)), x, y, epsilons=eps)
    ours = FGSM(Threat(norm, eps))(model, x, y)
    assert telling(flags)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# --- torchattacks ---


@pytest.fixture
def torchattacks():
    return pytest.importorskip("torchattacks")


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_mi_fgsm_gives_torchattacks_examples(decay, digits, torchattacks):
    """It divides by the mean of absolute values where the paper divides by their sum: the sign is the same."""
    model, x, y = digits
    expected = torchattacks.MIFGSM(model, eps=0.1, alpha=0.1 / 8, steps=8, decay=decay)(x, y)
    ours = MIFGSM(Threat("linf", 0.1), steps=8, decay=decay)(model, x, y)
    flags = broken(model, expected, y)
    assert telling(flags)
    assert broken(model, ours, y).equal(flags)
    assert ((ours - expected).abs().flatten(1).amax(1) < 1e-4).double().mean() > 0.95


def test_pgd_is_as_strong_as_torchattacks(digits, torchattacks):
    model, x, y = digits
    flags = broken(model, torchattacks.PGD(model, eps=0.1, alpha=0.025, steps=10)(x, y), y)
    ours = broken(model, PGD(Threat("linf", 0.1), 10, step_size=0.025)(model, x, y, draws(len(x))), y)
    assert telling(flags)
    assert by_chance(ours, flags)


def test_pgd_in_l2_is_as_strong_as_torchattacks(digits, torchattacks):
    model, x, y = digits
    flags = broken(model, torchattacks.PGDL2(model, eps=0.6, alpha=0.15, steps=10)(x, y), y)
    ours = broken(model, PGD(Threat("l2", 0.6), 10, step_size=0.15)(model, x, y, draws(len(x))), y)
    assert telling(flags)
    assert by_chance(ours, flags)
