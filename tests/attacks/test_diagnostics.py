"""Diagnostics fire on models that were built to hide their gradients, and stay silent on honest ones."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_helpers import Network, untouched
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import FGSM, PGD, Attack, SuiteResult, Threat, crafting
from attacks.diagnostics import BOUND, diagnose, report
from attacks.engine import Batch
from attacks.planted import plant
from attacks.probes import Case, Finding
from attacks.results import Outcome

THREAT = Threat("linf", 0.15)


class Changed(nn.Module):
    """A model with something done to its images or its logits."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


def levels(x: Tensor) -> Tensor:
    """Five levels of grey."""
    return (4 * x).round() / 4


def trained(epochs: int, temperature: float = 1.0, attack: Attack | None = None) -> nn.Module:
    """A small network for digits."""
    data = load_digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        order = torch.randperm(1797)
        x, y = (torch.tensor(data.images).float().unsqueeze(1) / 16)[order], torch.tensor(data.target)[order]
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, epochs)
        for _ in range(epochs):
            for chosen in torch.randperm(1397).split(64):
                images = x[chosen] if attack is None else attack(model, x[chosen], y[chosen])
                optimizer.zero_grad()
                F.cross_entropy(model(images) / temperature, y[chosen]).backward()
                optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return trained(8, attack=PGD(THREAT, steps=7))


@pytest.fixture(scope="module")
def distilled_like() -> nn.Module:
    """Trained at T = 40 and used at T = 1, so that its softmax is saturated."""
    return trained(40, temperature=40.0)


@pytest.fixture
def batches(digits: tuple[nn.Module, Tensor, Tensor]) -> list[Batch]:
    """Test images in batches of 40."""
    _, x, y = digits
    return [(x[i], y[i], i) for i in torch.arange(len(x)).split(40)]


def fired(findings: list[Finding]) -> set[str]:
    """The checks that found something."""
    assert len({found.check for found in findings}) == len(findings)
    bad = [found for found in findings if found.verdict not in ("fine", "skipped")]
    assert all(found.saw and found.advice for found in bad)
    return {found.check for found in bad}


def printed(findings: list[Finding]) -> str:
    """The report on a terminal of 100 columns."""
    console = Console(file=io.StringIO(), width=100)
    console.print(report(findings))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_silent_on_an_adversarially_trained_model(robust: nn.Module, batches: list[Batch]) -> None:
    findings = diagnose(robust, batches, THREAT)
    assert fired(findings) == set()
    assert {found.check for found in findings if found.verdict == "skipped"} == {"Square in AutoAttack"}
    text = printed(findings)
    assert "Nothing seen speaks against it" in text
    assert " ".join(text.split()).endswith(BOUND)


@pytest.mark.parametrize("threat", [Threat("l2", 1.0), Threat("linf", 0.3, (-1, 1))], ids=str)
def test_silent_in_another_norm_or_box(robust: nn.Module, batches: list[Batch], threat: Threat) -> None:
    low, high = threat.bounds
    scaled = [(low + (high - low) * x, y, index) for x, y, index in batches]
    assert fired(diagnose(Changed(robust, lambda x: (x - low) / (high - low)), scaled, threat, images=60)) == set()


def test_silent_on_an_undefended_model(digits: tuple[nn.Module, Tensor, Tensor], batches: list[Batch]) -> None:
    assert fired(diagnose(digits[0], batches, THREAT, images=60)) == set()


def test_a_model_without_a_copy_in_float64(robust: nn.Module, batches: list[Batch]) -> None:
    """Derivatives are then compared in float32, where differences are rounded."""
    assert fired(diagnose(Changed(robust, Tensor.float), batches, THREAT, images=40)) == set()
    rounding = Changed(robust, lambda x: x.float() + (levels(x.float()) - x.float()).detach())
    findings = diagnose(rounding, batches, THREAT, images=40)
    assert "finite differences" in fired(findings)
    assert any("float32" in found.saw for found in findings)


@pytest.mark.parametrize("temperature", [40.0, 1.0])
def test_masked_by_temperature(distilled_like: nn.Module, batches: list[Batch], temperature: float) -> None:
    """Whether or not somebody remembers the temperature."""
    findings = diagnose(distilled_like, batches, THREAT, temperature, images=60)
    assert fired(findings) == {"zero gradients", "loss and temperature", "radius"}
    told = " ".join(found.advice for found in findings)
    assert "attacks.Strong" in told
    assert "loss: margin" in told
    if temperature == 40:
        assert "PGD-20 strong T=40" in told


ALTERED: dict[str, tuple[Callable[[nn.Module], nn.Module], set[str]]] = {
    "saturated": (
        lambda model: Changed(model, after=lambda z: 1e4 * z),
        {"zero gradients", "loss and temperature", "radius"},
    ),
    "quantised": (
        lambda model: Changed(model, levels),
        {"zero gradients", "finite differences", "planted examples", "without gradients", "radius"},
    ),
    "straight-through": (lambda model: Changed(model, lambda x: x + (levels(x) - x).detach()), {"finite differences"}),
    "randomised": (
        lambda model: Changed(model, lambda x: x + 0.3 * torch.randn_like(x)),
        {"repetition", "unstable predictions", "silent success", "planted examples"},
    ),
    "probabilities": (lambda model: Changed(model, after=lambda z: z.softmax(1)), {"logits"}),
    "batch statistics": (lambda model: Changed(model, after=lambda z: z - z.mean(0)), {"batch"}),
    "by position": (lambda model: Changed(model, after=lambda z: z + torch.linspace(0, 3, len(z))[:, None]), {"batch"}),
    "without a gradient": (
        lambda model: Changed(model, lambda x: levels(x).double().detach().float()),
        {"zero gradients"},
    ),
}


@pytest.mark.parametrize("name", ALTERED)
def test_fires_on_a_broken_model(name: str, digits: tuple[nn.Module, Tensor, Tensor], batches: list[Batch]) -> None:
    alter, expected = ALTERED[name]
    findings = diagnose(alter(digits[0]), batches, THREAT, images=40)
    assert expected <= fired(findings)
    # Honest in all else: what fires is about what was broken.
    if name in ("saturated", "probabilities"):
        assert expected == fired(findings)
    text = printed(findings)
    assert "Nothing" not in text
    assert all(check.split()[0] in text for check in expected)
    assert max(map(len, text.splitlines())) <= 100


def test_broken_on_top_of_robust(robust: nn.Module, batches: list[Batch]) -> None:
    """A scale of the logits leaves the model as robust as it was; the figure by PGD is wrong all the same."""
    findings = diagnose(Changed(robust, after=lambda z: 1e4 * z), batches, THREAT, images=60)
    assert {"zero gradients", "loss and temperature"} <= fired(findings)


class Dip(nn.Module):
    """One pixel; the other class is likelier in a dip that is narrower than a large radius's step."""

    def forward(self, x: Tensor) -> Tensor:
        dip = 2 * torch.exp(-(((x.flatten(1) - 0.56) / 0.02) ** 2))
        return torch.cat([torch.ones_like(dip), dip], 1)


def test_a_larger_radius_that_finds_less() -> None:
    x = 0.45 + 0.05 * torch.rand(100, 1, 1, 1)
    findings = diagnose(Dip(), [(x, torch.zeros(100).long(), torch.arange(100))], Threat("linf", 0.12))
    assert "radius" in fired(findings)


def test_one_class_for_all(batches: list[Batch]) -> None:
    findings = diagnose(
        Changed(nn.Flatten(), after=lambda z: F.one_hot(0 * z.argmax(1), 10) + 0 * z[:, :10]), batches, THREAT
    )
    assert "classes" in fired(findings)
    assert next(found for found in findings if found.check == "planted examples").verdict == "skipped"


def test_nothing_to_attack(digits: tuple[nn.Module, Tensor, Tensor], batches: list[Batch]) -> None:
    wrong = [(x, (y + 1) % 10, index) for x, y, index in batches]
    assert [found.verdict for found in diagnose(digits[0], wrong, THREAT)] == ["skipped"]
    findings = diagnose(digits[0], batches, Threat("linf", 0))
    assert fired(findings) == set()
    assert findings[-1] == Finding("attacks", "skipped", "the radius is 0")


def test_images_outside_the_box_are_refused(digits: tuple[nn.Module, Tensor, Tensor], batches: list[Batch]) -> None:
    x, y, index = batches[0]
    with pytest.raises(ValueError, match="expected floats in"):
        diagnose(digits[0], [(255 * x, y, index)], THREAT)
    with pytest.raises(ValueError, match="need images"):
        diagnose(digits[0], [], THREAT)


def test_the_model_is_untouched_and_the_answer_repeated(network: Network) -> None:
    """Wherever it is called, and however the images are batched."""
    x, index = torch.rand(24, 3, 8, 8), torch.arange(24)
    with crafting(network), torch.no_grad():
        y = network(x).argmax(1)
    whole, parts = [(x, y, index)], [(x[i], y[i], i) for i in index.split(7)]
    with untouched(network), torch.inference_mode():
        first = diagnose(network, whole, Threat(), 5.0, seed=1)
        assert diagnose(network, whole, Threat(), 5.0, seed=1) == first
        verdicts = [(found.check, found.verdict) for found in diagnose(network, parts, Threat(), 5.0, seed=1)]
    assert verdicts == [(found.check, found.verdict) for found in first]


def suite(right: dict[str, int], n: int = 1000) -> SuiteResult:
    """A suite's result in which each attack leaves the first images right."""
    none = np.zeros(n)
    outcomes = {}
    for name, count in {"clean": n, **right}.items():
        rank = (np.arange(n) >= count).astype(int)
        threat = "" if name == "clean" else str(THREAT)
        outcomes[name] = Outcome(none, rank, none, none, none, none, np.ones(n, bool), threat=threat)
    return SuiteResult(np.arange(n), none, outcomes, {}, np.arange(0))


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ({"FGSM": 503, "PGD-20": 500, "noise x10": 900}, set()),
        ({"FGSM": 490, "PGD-20": 500, "noise x10": 900}, {"one step"}),
        ({"FGSM": 499, "PGD-20": 500, "noise x10": 900}, set()),  # 0.1 points
        ({"PGD-20": 500, "APGD-CE": 490, "Square": 480}, {"without gradients"}),
        ({"PGD-20": 500, "PGD-20 margin": 470, "Square": 480}, set()),
        ({"PGD-20": 500, "PGD-10 from other.ckpt": 450}, {"without gradients"}),
        ({"AutoAttack after FAB-T": 400, "AutoAttack": 390}, {"Square in AutoAttack"}),
        ({"AutoAttack after FAB-T": 400, "AutoAttack": 397}, set()),  # 0.3 points, but of 1000 images
    ],
)
def test_the_suites_own_figures_are_compared(
    robust: nn.Module, batches: list[Batch], right: dict[str, int], expected: set[str]
) -> None:
    assert fired(diagnose(robust, batches, THREAT, images=16, result=suite(right))) == expected


def test_attacks_with_another_radius_do_not_count(robust: nn.Module, batches: list[Batch]) -> None:
    result = suite({"FGSM linf 0.3": 10, "PGD-20": 500})
    result.outcomes["FGSM linf 0.3"] = replace(result.outcomes["FGSM linf 0.3"], threat="linf 0.3")
    assert fired(diagnose(robust, batches, THREAT, images=16, result=result)) == set()


def test_planted_examples_exist(robust: nn.Module, batches: list[Batch]) -> None:
    """Each readout has its image in the first class and something of the ball in the second, narrowed or not."""
    x, y, index = batches[0]
    case = Case(robust, batches[:1], THREAT, 1.0, 0)
    readout, apart = plant(case, batches[0])
    assert apart.float().mean() > 0.9
    outward = THREAT.steepest(case.draws(index, 4).normal(x.shape[1:]))
    there = THREAT.project(x + float(THREAT.eps) * outward, x)
    assert (readout(x).argmax(1) == 0)[apart].all()
    assert (readout(there).argmax(1) == 1)[apart].all()
    kept = torch.tensor([5, 2])
    torch.testing.assert_close(readout.narrowed(kept)(there[kept]), readout(there)[kept])
    assert (FGSM(THREAT)(readout, x, torch.zeros_like(y)) - x).abs().amax() > 0
