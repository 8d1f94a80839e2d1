"""Is it really robust? Signs that a model hides its gradients instead, after a suite has measured it."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from torch import Tensor, nn

from attacks.engine import Batch, check, judge
from attacks.gradient import FGSM, PGD, Noise
from attacks.planted import planted
from attacks.probes import STEPS, Case, Finding, connected, dependence, finding, outputs, paths, repetition, slopes
from attacks.records import wilson
from attacks.results import SuiteResult
from attacks.square import Square
from attacks.suite import run_suite
from attacks.threat import Radius, Threat
from attacks.wrappers import Strong

# 0.2 points: what AutoAttack's authors let pass when Square finds more than their white-box attacks, on 10,000 images;
# on fewer, the lower end of the gap's 95 % interval must exceed it.
BETTER = 0.002
# Points between losses: on honest models margin and cross-entropy are up to about 4 apart (Croce & Hein 2020, table 2).
MASKED = 0.10
STEADY = 0.02  # points that twice the steps may win, or that a larger radius may lose
BOX = 0.05  # share that may stand where any image may become any other: the failures of 20 steps, not of the model
SURE = 2.0  # standard deviations of a difference of paired counts, which is the root of the images that differ
BOUND = "The figure of an attack, AutoAttack's too, is an upper bound on robustness: a better attack may find more."


@torch.inference_mode(False)  # a copy made inside could not enter a graph
def diagnose(
    model: nn.Module,
    batches: Sequence[Batch],
    threat: Threat,
    temperature: float = 1.0,
    seed: int = 0,
    result: SuiteResult | None = None,
    images: int = 128,
    console: Console | None = None,
) -> list[Finding]:
    """Looks for signs that a model's measured robustness is not real.

    It costs about as much as 20 runs of PGD-20. The model is left exactly as it was.

    Args:
        model: maps images to logits.
        batches: (images in the box, labels, indices), on the model's device.
        threat: the threat model of the figures in question.
        temperature: the temperature that the model was trained at.
        seed: with an image's index, what its random draws follow from.
        result: the suite's, whose figures are compared where it has run the attacks that a check compares.
        images: how many to look at: the first that are classified correctly.
        console: where progress is drawn; None for nowhere.

    Returns:
        A finding for every check.

    Raises:
        ValueError: for no images, images outside the box, labels that the model has no class for, or logits that are
            not finite.
    """
    if images < 1 or not len(batches):
        raise ValueError(f"Diagnostics need images: got {len(batches)} batches and images={images}.")
    threat = threat.within(threat.bounds)  # the sweep's threat models then hold the same box
    parts, predicted = _chosen(model, batches, threat, images)
    if not parts:
        return [Finding("images", "skipped", "the model classifies no image correctly, so there is nothing to attack")]
    case = Case(model, parts, threat, temperature, seed)
    repeats = repetition(case)
    alone = dependence(case) if repeats.verdict == "fine" else Finding("batch", "skipped", "the model draws at random")
    findings = [_classes(predicted), outputs(case), repeats, alone]
    if not threat.eps:
        return [*findings, Finding("attacks", "skipped", "the radius is 0")]
    if not connected(case):
        saw = "the logits have no gradient with respect to the image, so no white-box attack runs"
        return [
            *findings,
            Finding("zero gradients", "misleading", saw, "attacks.Square, attacks.Noise, attacks.Transfer"),
        ]
    function = repeats.verdict == "fine" and alone.verdict != "misleading"
    findings += [*paths(case), *slopes(case, function), planted(case)]
    radii = _radii(case)
    hotter = Strong(PGD(steps=STEPS), temperature if temperature != 1 else _spread(case))
    attacks = [
        FGSM(),
        PGD(steps=STEPS),
        PGD(steps=2 * STEPS),
        PGD(steps=STEPS, loss="margin"),
        *([hotter] if hotter.temperature != 1 else []),
        Noise(samples=100),
        Square(queries=200),
        *(PGD(radius, steps=STEPS) for radius in radii if radius != threat),
    ]
    own = run_suite(model, parts, attacks, threat, temperature, seed, examples=0, title="diagnostics", console=console)
    suites = [own] if result is None else [result, own]
    findings += [_one_step(suites, threat), _blind(suites, threat), _square(suites)]
    return [*findings, _losses(own, hotter), _sweep(own, radii, threat), _steps(own)]


def report(findings: Sequence[Finding], title: str = "Is it really robust?") -> RenderableType:
    """A verdict in one line, a table of what is wrong, and the names of the checks that found nothing."""
    verdicts = {finding.verdict for finding in findings}
    verdict = "[green]Nothing seen speaks against it.[/]"
    if verdicts == {"skipped"}:
        verdict = "[yellow]Nobody knows: nothing could be looked at.[/]"
    if "suspicious" in verdicts:
        verdict = "[yellow]Perhaps not: a figure may say more than is true.[/]"
    if "misleading" in verdicts:
        verdict = "[red]No: at least one figure says more than is true.[/]"
    table = Table(show_lines=True)
    for column, ratio in (("verdict", 3), ("check", 3), ("saw", 8), ("run next", 6)):
        table.add_column(column, ratio=ratio)
    for row in findings:
        if row.verdict in ("suspicious", "misleading"):
            table.add_row(row.verdict, row.check, row.saw, row.advice)
    fine = [finding.check for finding in findings if finding.verdict == "fine"]
    skipped = [f"Skipped: {row.check} ({row.saw})." for row in findings if row.verdict == "skipped"]
    told = f"{len(fine)} of {len(findings)} checks found nothing: {', '.join(fine)}."
    return Group(f"[bold]{title}[/] {verdict}", *([table] if table.rows else []), told, *skipped, BOUND)


def _chosen(model: nn.Module, batches: Sequence[Batch], threat: Threat, images: int) -> tuple[list[Batch], Tensor]:
    """The first images that are classified correctly, in their batches, and the predictions on all up to there."""
    parts: list[Batch] = []
    predicted, left = [], images
    for x, y, index in batches:
        check(x, threat, "Images")
        prediction, _ = judge(model, x, y)
        predicted.append(prediction)
        right = (prediction == y).nonzero().squeeze(1)[:left]
        left -= len(right)
        if len(right):
            parts.append((x[right], y[right], index[right]))
        if not left:
            break
    return parts, torch.cat(predicted)


def _classes(predicted: Tensor) -> Finding:
    """A model of one answer is robust, and of no use: its accuracy is that class's share."""
    classes = len(predicted.unique())
    saw = f"{len(predicted)} clean images are predicted as {classes} class{'es' if classes > 1 else ''}"
    return finding("classes", classes == 1 < len(predicted), saw, "a model that tells classes apart, or other images")


def _spread(case: Case) -> float:
    """A temperature at which cross-entropy is not saturated: the median lead of the predicted class, at least 1."""
    highest = case.logits().topk(2, dim=1).values
    return max(1.0, float(f"{(highest[:, 0] - highest[:, 1]).median():.2g}"))


def _radii(case: Case) -> list[Threat]:
    """Threat models of growing radius, the last of which holds the whole box."""
    low, high = case.threat.bounds
    eps, width = float(case.threat.eps), high - low
    box = width if case.threat.norm == "linf" else width * math.sqrt(case.parts[0][0][0].numel())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the whole box in l2 looks like a mistake in units
        radii = [replace(case.threat, eps=Radius(eps * factor)) for factor in (0.5, 2, 4) if eps * factor < box]
        radii += [replace(case.threat, eps=Radius(box))] if eps < box else []
    return sorted([case.threat, *radii], key=lambda threat: threat.eps)


def _share(right: np.ndarray) -> str:
    return f"{100 * right.mean():.1f} %"


def _wins(strong: np.ndarray, weak: np.ndarray, points: float) -> bool:
    """Whether one attack leaves fewer images right than another, by more than some points and by more than chance."""
    more, less = int((weak & ~strong).sum()), int((strong & ~weak).sum())
    return more - less > points * len(weak) and more - less > SURE * math.sqrt(more + less)


def _fewest(suites: Sequence[SuiteResult], threat: Threat, *kinds: str) -> list[tuple[str, np.ndarray]]:
    """The attack of each kind that leaves the fewest images right, in the first suite that has run every kind.

    Kinds are patterns of names. Attacks with another threat model, or none, do not count.
    """
    for suite in suites:
        names = [name for name in suite.limited if suite.outcomes[name].threat == str(threat)]
        groups = [[name for name in names if re.fullmatch(kind, name)] for kind in kinds]
        if all(groups):
            best = [min(group, key=lambda name: suite.right(name).sum()) for group in groups]
            return [(name, suite.right(name)) for name in best]
    raise AssertionError("The own suite runs every kind.")


def _compared(check: str, weak: tuple[str, np.ndarray], strong: tuple[str, np.ndarray], advice: str) -> Finding:
    """A finding where the attack that should be the weaker one leaves fewer images right."""
    # Beyond chance: on a few hundred images of an honest model, Square does break one or two that AutoAttack had left.
    saw = f"{weak[0]} leaves {_share(weak[1])} right, {strong[0]} {_share(strong[1])}"
    return finding(check, _wins(weak[1], strong[1], BETTER), saw, advice)


def _one_step(suites: Sequence[SuiteResult], threat: Threat) -> Finding:
    """One step beats many where the gradient leads astray (Athalye et al. 2018; Carlini et al. 2019)."""
    one, many = _fewest(suites, threat, "FGSM", r"PGD-\d+( x\d+)?")
    return _compared("one step", one, many, "PGD with loss: margin, attacks.APGD, attacks.Square")


def _blind(suites: Sequence[SuiteResult], threat: Threat) -> Finding:
    """Attacks without the model's gradient beat those with it (Athalye et al. 2018)."""
    blind, sighted = _fewest(
        suites, threat, r"noise .*|Square.*|.* from .*", r"(?!.* from )(FGSM|MI-FGSM|PGD|APGD|FAB).*"
    )
    return _compared("without gradients", blind, sighted, "attacks.Square with all its 5000 queries and restarts: 5")


def _square(suites: Sequence[SuiteResult]) -> Finding:
    """Square, last in AutoAttack, breaks what its white-box attacks left: its authors' own sign of masking."""
    for suite in suites:
        before = [name for name in suite.outcomes if name.startswith("AutoAttack after ")]
        if "AutoAttack" in suite.outcomes and before:
            last = (before[-1], suite.right(before[-1]))
            advice = "attacks.Square with restarts: 5, and an attack made for this model"
            return _compared("Square in AutoAttack", ("AutoAttack", suite.right("AutoAttack")), last, advice)
    return Finding("Square in AutoAttack", "skipped", "the suite has not run AutoAttack")


def _losses(own: SuiteResult, hotter: Strong) -> Finding:
    """PGD on ``z / T`` or on the margin beats PGD: defensive distillation's signature (Carlini & Wagner 2016)."""
    weak = f"PGD-{STEPS}"
    strong = [name for name in (hotter.name, f"{weak} margin") if name in own.outcomes]
    masked = any(_wins(own.right(name), own.right(weak), MASKED) for name in strong)
    saw = f"{weak} leaves {_share(own.right(weak))} right, " + ", ".join(
        f"{name} {_share(own.right(name))}" for name in strong
    )
    return finding("loss and temperature", masked, saw, f"judge it by {', '.join(strong)} and AutoAttack", "misleading")


def _sweep(own: SuiteResult, radii: Sequence[Threat], threat: Threat) -> Finding:
    """Accuracy must fall with the radius, to nothing where the ball holds the whole box (Carlini et al. 2019)."""
    right = [own.right(f"PGD-{STEPS}" + (f" {radius}" if radius != threat else "")) for radius in radii]
    # A step of a ball far larger than the threat's may leap over what a smaller one finds; that is no masking.
    near = [r for r, radius in zip(right, radii, strict=True) if radius.eps <= 2 * threat.eps]
    rises = any(_wins(smaller, larger, STEADY) for smaller, larger in pairwise(near))
    # What a smaller ball holds the larger one holds too.
    left = np.logical_and.reduce(right)
    stands = wilson(int(left.sum()), len(left))[0] > BOX
    saw = ", ".join(f"{_share(r)} at {radius.eps}" for radius, r in zip(radii, right, strict=True))
    return finding(
        "radius",
        rises or stands,
        f"PGD-{STEPS} leaves right {saw} (the whole box)",
        "PGD with loss: margin, attacks.Strong, attacks.Square, until nothing stands at the largest radius",
        "misleading" if stands else "suspicious",
    )


def _steps(own: SuiteResult) -> Finding:
    """An attack that has converged gains nothing by twice the steps (Carlini et al. 2019)."""
    once, twice = f"PGD-{STEPS}", f"PGD-{2 * STEPS}"
    saw = f"{once} leaves {_share(own.right(once))} right, {twice} {_share(own.right(twice))}"
    gains = _wins(own.right(twice), own.right(once), STEADY)
    return finding("steps", gains, saw, "attacks.PGD with steps: 200, attacks.APGD, until the figure stays")
