"""What a model is asked before any attack is believed: its outputs, its repetitions, its gradients, a path of PGD."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import ascend, crafting
from attacks.draws import Draws
from attacks.engine import Batch
from attacks.gradient import PGD
from attacks.objectives import Goal, margin
from attacks.threat import Threat
from attacks.wrappers import Strong

Verdict = Literal["fine", "suspicious", "misleading", "skipped"]

PASSES = 3  # identical passes that must agree
REPEATS = 1e-4  # of the largest logit: sums of float32 in another order differ by 1e-6 or so
BATCHES = 1e-2  # likewise: another batch size may choose another kernel, in TF32 with its 10 bits an error of 1e-3
ALONE = 16  # images that are also shown alone
SIMPLEX = 1e-2  # how far rows of probabilities may miss the sum of 1, in bfloat16 too
STEPS = 20  # of PGD's path
ZERO = 0.01  # share of images: no network that learns has a gradient that is exactly zero, but for underflow
SLOPE = 0.1  # relative error of a derivative; true ones agree to 1e-6, a stand-in's are off by their whole size
OFF = 0.05  # share of images, since a kink of a ReLU may lie between the two points of a difference
# Noise of a hundredth of the radius moves a smooth model by a hundredth of what noise of the whole radius does, and a
# random or jumping one by as much: the limit lies half-way, geometrically.
NEAR, UNSTABLE = 0.01, 0.1
SILENT = 0.05  # share of images: one or two at the border may go either way
LATE, RISE = 5, 0.05  # the last steps, and the share of the whole rise that is left to them (Pintor et al. 2022)


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        verdict: ``fine``; ``suspicious``, so that a figure may be too high; ``misleading``, so that one certainly means
            less than it says; ``skipped``, where the check does not apply.
        saw: the numbers.
        advice: what to run next; empty where nothing is wrong.
    """

    check: str
    verdict: Verdict
    saw: str
    advice: str = ""


@dataclass(frozen=True)
class Case:
    """A model and images that it classifies correctly, in batches; draws follow from the seed and the indices."""

    model: nn.Module
    parts: Sequence[Batch]
    threat: Threat
    temperature: float
    seed: int

    @property
    def y(self) -> Tensor:
        """All labels, (n,)."""
        return torch.cat([y for _, y, _ in self.parts])

    def draws(self, index: Tensor, use: int) -> Draws:
        """Draws of a batch's images for one use."""
        return Draws(index, (self.seed, use))

    def logits(self) -> Tensor:
        """The logits of all images, (n, C), by one pass."""
        with crafting(self.model), torch.no_grad():
            return torch.cat([self.model(x).float() for x, _, _ in self.parts])


def finding(check: str, bad: bool, saw: str, advice: str, verdict: Verdict = "suspicious") -> Finding:
    """A finding with a verdict and an advice where something is wrong."""
    return Finding(check, verdict, saw, advice) if bad else Finding(check, "fine", saw)


def outputs(case: Case) -> Finding:
    """Probabilities in the place of logits: cross-entropy takes their softmax again and DLR divides by nothing."""
    z = case.logits()
    low, high, off = float(z.amin()), float(z.amax()), float((z.sum(1) - 1).abs().amax())
    bad = low >= 0 and high <= 1 + SIMPLEX and off <= SIMPLEX
    saw = f"outputs lie in [{low:.3g}, {high:.3g}]; their sums miss 1 by at most {off:.2g}"
    return finding("logits", bad, saw, "drop the model's last softmax, then the suite again", "misleading")


def repetition(case: Case) -> Finding:
    """Passes over the same images that differ: an attack must then climb an expectation (Athalye et al. 2018)."""
    passes = torch.stack([case.logits() for _ in range(PASSES)])
    spread, scale = float((passes - passes[0]).abs().amax()), float(passes.abs().amax())
    flips = int((passes.argmax(2) != passes[0].argmax(1)).any(0).sum())
    saw = f"{PASSES} passes differ by {spread:.2g} at logits up to {scale:.3g}; {flips} predictions change"
    return finding("repetition", spread > REPEATS * scale, saw, "attacks.EOT around each attack, and votes: 20")


def dependence(case: Case) -> Finding:
    """Logits that depend on the other images of the batch, or on an image's place in it."""
    x = next((x for x, _, _ in case.parts if len(x) > 1), case.parts[0][0])
    if len(x) == 1:
        return Finding("batch", "skipped", "no batch holds two images")
    with crafting(case.model), torch.no_grad():
        whole, turned = case.model(x).float(), case.model(x.flip(0)).float().flip(0)
        # Twice, for some layers refuse a batch of one.
        alone = torch.cat([case.model(image.expand(2, *image.shape))[:1].float() for image in x[:ALONE]])
    moved, scale = float((turned - whole).abs().amax()), float(whole.abs().amax())
    left = float((alone - whole[:ALONE]).abs().amax())
    saw = f"logits up to {scale:.3g} change by {left:.2g} without the batch, by {moved:.2g} in another order"
    return finding(
        "batch",
        max(moved, left) > BATCHES * scale,
        saw,
        "fix the layers that use batch statistics in eval mode, then the suite again",
        "misleading",
    )


def connected(case: Case) -> bool:
    """Whether the logits have a gradient with respect to the image at all."""
    with crafting(case.model):
        return bool(case.model(case.parts[0][0].detach().clone().requires_grad_()).requires_grad)


class Watched(nn.Module):
    """Keeps the logits of every pass, and of which images the input's gradient was exactly zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.logits: list[Tensor] = []
        self.zero: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.logits.append(logits.detach().float())
        if x.requires_grad:
            x.register_hook(lambda gradient: self.zero.append((gradient == 0).flatten(1).all(1)))
        return logits


def watch(case: Case, attack: Attack) -> tuple[Tensor, Tensor]:
    """An attack's path, all of its steps made: the logits (K + 1, n, C), and where the gradient was zero (K, n)."""
    logits, zero = [], []
    for x, y, index in case.parts:
        watched = Watched(case.model)
        x_adv = attack(watched, x, y, case.draws(index, 0))
        with crafting(watched), torch.no_grad():
            watched(x_adv)
        logits.append(torch.stack(watched.logits))
        zero.append(torch.stack(watched.zero))
    return torch.cat(logits, 1), torch.cat(zero, 1)


def paths(case: Case) -> list[Finding]:
    """Zero gradients, and two of Pintor et al.'s (2022) indicators of attack failure, on paths from the images."""

    def climb(loss: Literal["ce", "margin"]) -> PGD:
        return PGD(case.threat, STEPS, random_start=False, loss=loss)

    attacks: dict[str, Attack] = {"CE": climb("ce"), "margin": climb("margin")}
    if case.temperature != 1:
        attacks[f"CE at T = {case.temperature:g}"] = Strong(climb("ce"), case.temperature)
    seen = {name: watch(case, attack) for name, attack in attacks.items()}
    shares = {name: (float(zero[0].float().mean()), float(zero[1:].float().mean())) for name, (_, zero) in seen.items()}
    told = "; ".join(f"{name} {start:.0%}, then {way:.0%}" for name, (start, way) in shares.items())
    zeros = finding(
        "zero gradients",
        max(max(share) for share in shares.values()) > ZERO,
        f"images whose gradient is exactly 0 at the start and on the way: {told}",
        "attacks.Square, attacks.Transfer"
        if max(shares["margin"]) > ZERO
        else "PGD with loss: margin, attacks.Strong with the temperature of training",
        "misleading",
    )
    return [zeros, *_indicators(seen["margin"][0], case.y)]


def _indicators(logits: Tensor, y: Tensor) -> list[Finding]:
    broken = logits.argmax(2) != y
    lost = broken[:-1].any(0) & ~broken[-1]
    silent = finding(
        "silent success",
        float(lost.float().mean()) > SILENT,
        f"{int(lost.sum())} of {len(y)} images were broken on the way, but not at the path's end",
        "attacks.APGD, which keeps the best point; a smaller step_size; judge by the suite, which sees every step",
    )
    best = torch.stack([margin(z, y) for z in logits]).cummax(0).values
    stands = ~broken.any(0)
    late = (best[-1] - best[-1 - LATE])[stands] > RISE * (best[-1] - best[0])[stands]
    rising = finding(
        "incomplete optimisation",
        int(late.sum()) * 2 > int(stands.sum()),
        f"the margin still rises in the last {LATE} of {STEPS} steps on {int(late.sum())} of {int(stands.sum())} "
        "images that stand",
        "more steps: attacks.PGD with steps: 100, attacks.APGD",
    )
    return [silent, rising]


def slopes(case: Case, function: bool) -> list[Finding]:
    """Autograd against central differences of the margin, and the margin's jumps under tiny noise.

    Both are taken on a copy in float64 where the model has one, at points that lie within the box and on no grid.
    A step that rounds has no slope of its own; what autograd gives there is a stand-in's.

    Args:
        case: model and images.
        function: the logits are a function of the image alone; otherwise differences would measure something else.
    """
    model, dtype = _exact(case)
    low, high = case.threat.bounds
    step = (1e-6 if dtype == torch.float64 else 1e-3) * (high - low)
    off: list[Tensor] = []
    moves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for x, y, index in case.parts:
        draws, goal, shape = case.draws(index, 1), Goal("margin", y), x.shape[1:]
        middle = (low + high) / 2
        x = middle + 0.98 * (x.to(dtype) - middle) + draws.uniform(shape, -0.005, 0.005).to(dtype) * (high - low)
        with crafting(model):
            logits, value, gradient = ascend(model, x, goal)
            wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            with torch.no_grad():
                rounding = 16 * torch.finfo(dtype).eps * logits.abs().amax(1)
                signs = draws.uniform(shape, -1, 1).to(dtype).sign()
                for direction, order in ((gradient.sign(), 1), (signs, 2)):
                    said = (gradient * direction).flatten(1).sum(1)
                    found = (goal(model(x + step * direction)) - goal(model(x - step * direction))) / (2 * step)
                    size = torch.maximum(gradient.flatten(1).norm(order, dim=1), found.abs())
                    wrong |= (found - said).abs() > SLOPE * size + rounding / step
                for near, kept in zip((NEAR, 1.0), moves, strict=True):
                    delta = case.threat.start(x, case.draws(index, 2)) - x
                    kept.append((goal(model(x + near * delta)) - value).abs() - rounding)
        # A gradient of zero agrees with the tiny difference, but not with the margin's way over the whole ball.
        off.append(wrong | (gradient == 0).flatten(1).all(1) & (moves[1][-1] > 0))
    share = float(torch.cat(off).float().mean())
    agree = finding(
        "finite differences",
        share > OFF,
        f"autograd and differences ({str(dtype).removeprefix('torch.')}) disagree on {share:.0%} of the images",
        "attacks.Square, attacks.Transfer; a differentiable stand-in for the step (BPDA, Athalye et al. 2018)",
    )
    if not function:
        agree = Finding("finite differences", "skipped", "the logits depend on more than the image")
    tiny, whole = (float(torch.cat(kept).clamp_min(0).square().mean().sqrt()) for kept in moves)
    unstable = finding(
        "unstable predictions",
        tiny > UNSTABLE * whole,
        f"noise moves the margin by {whole:.2g} at the whole radius, by {tiny:.2g} at a hundredth of it",
        "attacks.EOT around each attack, attacks.Square",
    )
    return [agree, unstable]


def _exact(case: Case) -> tuple[nn.Module, torch.dtype]:
    """A copy of the model in float64, or the model itself where it has none."""
    x = case.parts[0][0]
    try:
        model = copy.deepcopy(case.model).double()
        with crafting(model), torch.no_grad():
            if model(x.double()).dtype == torch.float64:
                return model, torch.float64
    except Exception:  # it casts inside, insists on float32, cannot be copied, or its device has no float64
        pass
    return case.model, x.dtype
