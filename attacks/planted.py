"""The active test: an adversarial example is planted into every ball, and a working attack must find it."""

import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import RowWise, crafting, narrow
from attacks.engine import Batch
from attacks.gradient import PGD, Noise
from attacks.probes import STEPS, Case, Finding, finding
from attacks.records import wilson

INNER = 50  # points around each image that belong to the first class
# Their share of the radius. The paper's points go up to 0.95, but it reads hundreds of features; a handful of logits
# leaves room between them and the planted point only if they keep further away.
SPREAD = 0.5
FOUND = 0.95  # share that an attack must find for its figures to be believed (the paper's limit)
FEWEST = 10  # images; of fewer the share says nothing


class Planted(RowWise):
    """A readout of a model's logits for each image: ``(0, (z(x) - centre) . direction - threshold)``.

    Args:
        model: maps images to logits.
        centre: of the inner points' logits, (B, C).
        direction: to the planted point's, (B, C).
        threshold: where the second class begins, (B,).
    """

    def __init__(self, model: nn.Module, centre: Tensor, direction: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.model = model
        self.centre, self.direction, self.threshold = centre, direction, threshold

    def forward(self, x: Tensor) -> Tensor:
        value = ((self.model(x) - self.centre) * self.direction).sum(1) - self.threshold
        return torch.stack([torch.zeros_like(value), value], 1)

    def narrowed(self, kept: Tensor) -> nn.Module:
        return Planted(narrow(self.model, kept), self.centre[kept], self.direction[kept], self.threshold[kept])


def plant(case: Case, part: Batch) -> tuple[Planted, Tensor]:
    """A readout for each image of a batch, and for which images it tells the planted point from the inner ones.

    The direction leads from the inner points' mean to a random point of the ball's surface; the threshold lies midway
    between the furthest inner point and that one.
    """
    x, _, index = part
    with crafting(case.model), torch.no_grad():
        around = (case.threat.start(x, case.draws(index, 3).stream(number)) - x for number in range(INNER))
        inner = torch.stack([case.model(x), *(case.model(x + SPREAD * delta) for delta in around)])
        outward = case.threat.steepest(case.draws(index, 4).normal(x.shape[1:]).to(x.dtype))
        planted = case.model(case.threat.project(x + float(case.threat.eps) * outward, x))
        centre = inner.mean(0)
        length = (planted - centre).norm(dim=1)
        direction = (planted - centre) / length[:, None].clamp_min(torch.finfo(length.dtype).tiny)
        furthest = ((inner - centre) * direction).sum(2).amax(0)
        # The gap must be more than rounding.
        apart = length - furthest > 100 * torch.finfo(length.dtype).eps * inner.abs().amax((0, 2))
    return Planted(case.model, centre, direction, (length + furthest) / 2), apart


def planted(case: Case) -> Finding:
    """PGD on the margin against the readouts, beside a random search (Zimmermann et al. 2022, the binarisation test).

    The paper reads the features before the last layer by a logistic regression of each image; this reads the logits,
    which any model has, by a direction in closed form.
    """
    # At equal cost: a gradient is worth about two passes.
    attacks: dict[str, Attack] = {
        "PGD": PGD(case.threat, STEPS, loss="margin"),
        "random search": Noise(case.threat, 3 * STEPS),
    }
    found = dict.fromkeys(attacks, 0)
    count = 0
    for x, y, index in case.parts:
        readout, apart = plant(case, (x, y, index))
        kept = apart.nonzero().squeeze(1)
        if not len(kept):
            continue
        count += len(kept)
        first = torch.zeros_like(y[kept])
        model = narrow(readout, kept)
        for name, attack in attacks.items():
            x_adv = attack.evaluating()(model, x[kept], first, case.draws(index[kept], 5))
            with crafting(model), torch.no_grad():
                found[name] += int((model(x_adv).argmax(1) != first).sum())
    total = sum(len(y) for _, y, _ in case.parts)
    if count < FEWEST:
        return Finding("planted examples", "skipped", f"the logits tell a planted point in {count} of {total} images")
    told = ", ".join(f"{name} finds {number}" for name, number in found.items())
    return finding(
        "planted examples",
        wilson(found["PGD"], count)[1] < FOUND or wilson(found["PGD"], count)[1] < found["random search"] / count,
        f"of {count} examples that certainly exist {told}",
        "an attack made for this model (attacks.EOT, a differentiable stand-in), attacks.Square with more queries",
        "misleading",
    )
