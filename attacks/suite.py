"""Runs a list of attacks over a test set and keeps what became of every image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from rich.console import Console
from torch import nn

from attacks.autoattack import AutoAttack
from attacks.base import Attack
from attacks.crafting import crafting
from attacks.engine import Batch, Engine, deterministic, unmoved
from attacks.prepare import prepared
from attacks.progress import Bar
from attacks.results import CLEAN, Outcome, SuiteResult
from attacks.state import State, fingerprint
from attacks.threat import Threat
from attacks.wrappers import Strong, Transfer, Wrapper

Rng = Literal["image", "official"]
Precision = Literal["32", "bf16"]
LOOK = 4


def resolve(attacks: Sequence[Attack], threat: Threat, temperature: float) -> dict[str, Attack]:
    """The attacks as they will run, by name: with a threat model, and strong ones with the model's temperature.

    An attack with a threat model of its own bears it in its name. A strong version at T = 1 is the attack itself, so
    it is left out.

    Raises:
        ValueError: where two attacks would have the same name.
    """
    resolved: dict[str, Attack] = {}
    for given in attacks:
        attack = given.under(threat).at(temperature)
        if isinstance(attack, Strong) and attack.temperature == 1:
            continue
        name = given.name if str(attack.threat) == str(threat) else f"{given.name} {attack.threat}"
        if name in resolved:
            raise ValueError(f"The suite holds {name} more than once; each attack of a suite needs a name of its own.")
        resolved[name] = attack
    return resolved


@torch.inference_mode(False)  # under it no tensor may be differentiated
def run_suite(
    model: nn.Module,
    batches: Sequence[Batch],
    attacks: Sequence[Attack],
    threat: Threat,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    rng: Rng = "image",
    precision: Precision = "32",
    votes: int = 1,
    top: int = 1,
    examples: int = 8,
    state: State | None = None,
    title: str = "",
    console: Console | None = None,
) -> SuiteResult:
    """Attacks every image that the model classifies correctly, with each attack in turn.

    Attacks search on a copy of the network that computes the same faster; each success is confirmed in float32 on the
    model itself, and an image whose success is not confirmed is attacked again on the model itself. Images that are
    broken leave the batch; those that are left form full batches again for the next part of an attack.

    Args:
        model: maps images to logits; it is left exactly as it was.
        batches: (images in the box (B, C, H, W), labels (B,), indices (B,)), on the model's device.
        attacks: the attacks; one without a threat model of its own gets ``threat``.
        threat: the threat model.
        temperature: the temperature that the model was trained at, for strong attacks that name none.
        seed: with an image's index, what its random draws follow from.
        rng: ``official`` draws as the authors' AutoAttack does, by one generator for each batch, to compare with it.
        precision: of the search: ``bf16`` is faster on a GPU, and may find less.
        votes: passes whose mean probabilities judge an image; more than 1 for models that draw at random.
        top: with k above 1, top-k accuracies are kept too. Attacks then make all their steps on every image, so that
            only those will do that can.
        examples: how many clean and adversarial images to keep, the first ones.
        state: where what is done is kept, batch by batch: a suite that was stopped goes on from there. Whoever has
            written the result calls :meth:`attacks.state.State.finish`.
        title: what the progress bar calls the model.
        console: where the progress bar is drawn; None for no bar.

    Raises:
        ValueError: for no images, images outside the box, labels that the model has no class for, or logits that are
            not finite.
    """
    if rng not in get_args(Rng) or precision not in get_args(Precision):
        raise ValueError(f"rng is 'image' or 'official' and precision '32' or 'bf16', got {rng!r} and {precision!r}.")
    if votes < 1 or top < 1:
        raise ValueError(f"votes and top must be at least 1, got {votes} and {top}.")
    named = resolve(attacks, threat, temperature)
    if top > 1 and (stopping := [name for name, attack in named.items() if not attack.exhaustive]):
        raise ValueError(
            f"top={top} needs attacks that make all their steps on every image, such as FGSM, PGD, MI-FGSM and APGD "
            f"from one start; {', '.join(stopping)} stops at the first change of class."
        )
    if not sum(len(y) for _, y, _ in batches):
        raise ValueError("The suite was given no images to attack.")
    clean = unmoved(model, batches, threat, votes)
    columns = zip(*[(y.cpu(), i.cpu(), x[:examples].cpu()) for x, y, i in batches], strict=True)
    label, index, shown = (torch.cat(column).numpy() for column in columns)
    shown = shown[:examples]
    result = SuiteResult(index, label, {CLEAN: clean}, {}, index[:examples], {CLEAN: shown}, top)
    # A few images tell whether the copy computes the same and whether the model draws at random.
    x, y = next((x[:LOOK], y[:LOOK].long()) for x, y, _ in batches if len(y))
    steady = votes == 1 and deterministic(model, x, y.clone())
    # A copy of a model that draws at random might have one of its draws built in.
    searcher = prepared(model, x) if steady else model
    with crafting(model), torch.no_grad():
        logits = model(x)
    if top > logits.shape[1]:
        raise ValueError(f"The model has {logits.shape[1]} classes: a top-{top} accuracy says nothing of it.")
    for attack in named.values():
        while isinstance(attack, Wrapper):
            if isinstance(attack, Transfer):
                attack.require(x, logits.shape[1])
            attack = attack.attack
    state = state or State(None)
    if state.root is not None:
        answers = (logits.tolist(), clean.prediction.tolist()) if steady else ()
        state.open(fingerprint(model, batches, named, (seed, rng, precision, votes, top, examples, answers)))
    with Bar(title, len(label), console) as bar:
        engine = Engine(
            model,
            searcher,
            batches,
            state,
            bar,
            seed,
            official=rng == "official",
            bf16=precision == "bf16",
            deterministic=steady,
            votes=votes,
            stop=top == 1,
            kept=examples,
        )
        stage = 0
        for name, attack in named.items():
            parts = attack.parts if isinstance(attack, AutoAttack) else [attack]
            before, spent = replace(clean, images=shown), []
            for number, part in enumerate(parts, 1):
                called = name if number == len(parts) else f"{name} after {part.name}"
                while called in result.outcomes:
                    called += " again"
                stage += 1
                before = engine.run(part, before, f"{stage:03d}", called)
                spent.append(before)
                result.outcomes[called] = replace(before, images=None)
            result.outcomes[name] = replace(_whole(spent), images=None)
            assert before.images is not None
            result.examples[name] = before.images
            result.radii[name] = float(attack.threat.eps) if attack.limited and attack.threat.norm == "linf" else None
    return result


def _whole(parts: Sequence[Outcome]) -> Outcome:
    """The outcome of an attack in parts: what the last says of every image, at the cost of all."""
    return replace(
        parts[-1],
        forwards=np.sum([part.forwards for part in parts], axis=0),
        backwards=np.sum([part.backwards for part in parts], axis=0),
        attacked=parts[0].attacked,
        seconds=sum(part.seconds for part in parts),
    )
