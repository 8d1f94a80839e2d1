"""Runs a list of attacks over a test set and keeps what became of every image."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from attacks.base import Attack
from attacks.crafting import crafting
from attacks.draws import Draws
from attacks.records import Record, share
from attacks.threat import Threat
from attacks.wrappers import Strong

CLEAN = "clean"
WORST = "worst case"


@dataclass
class SuiteResult:
    """What became of every image.

    Attributes:
        index: index of each image in its test set, (n,).
        label: true classes, (n,).
        predictions: for ``clean`` and each attack's name, the predicted class of every image, (n,); an image that is
            wrong when clean is not attacked and keeps that prediction.
        distances: for each attack's name, how far it moved every image in the threat's norm, (n,).
        seconds: for ``clean`` and each attack's name, wall-clock time.
        threats: for each attack's name, its threat model.
        shown: index of the few images that are kept as examples, (k,).
        examples: for each attack's name, those images clean and adversarial, (k, C, H, W) each.
    """

    index: np.ndarray
    label: np.ndarray
    predictions: dict[str, np.ndarray]
    distances: dict[str, np.ndarray]
    seconds: dict[str, float]
    threats: dict[str, Threat]
    shown: np.ndarray
    examples: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def right(self, name: str) -> np.ndarray:
        """Which images are classified correctly when clean, under an attack, or under all of them: bool (n,)."""
        if name == WORST:
            return np.logical_and.reduce([self.right(attack) for attack in self.predictions])
        return self.predictions[name] == self.label

    def records(self) -> Iterator[Record]:
        """Clean accuracy, robust accuracy under each attack, and the worst case: robust against every one of them."""
        n = len(self.index)
        for name in self.predictions:
            threat = str(self.threats.get(name, ""))
            yield share(name, int(self.right(name).sum()), n, self.seconds[name], threat)
        if self.threats:
            threats = ", ".join(dict.fromkeys(str(threat) for threat in self.threats.values()))
            yield share(WORST, int(self.right(WORST).sum()), n, sum(self.seconds.values()), threats)

    def write(self, path: Path) -> None:
        """Writes one row per image to a Parquet file, so that any two runs can be compared image by image."""
        columns = {"index": self.index, "label": self.label}
        columns |= {f"prediction/{name}": values for name, values in self.predictions.items()}
        columns |= {f"distance/{name}": values for name, values in self.distances.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path)

    @classmethod
    def merge(cls, parts: Sequence["SuiteResult"]) -> "SuiteResult":
        """The result over shards of one test set, in the order of the index, each image once."""
        index, first = np.unique(np.concatenate([part.index for part in parts]), return_index=True)

        def join(columns: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
            return {name: np.concatenate([column[name] for column in columns])[first] for name in columns[0]}

        return cls(
            index=index,
            label=np.concatenate([part.label for part in parts])[first],
            predictions=join([part.predictions for part in parts]),
            distances=join([part.distances for part in parts]),
            seconds={name: max(part.seconds[name] for part in parts) for name in parts[0].seconds},
            threats=parts[0].threats,
            shown=parts[0].shown,
            examples=parts[0].examples,
        )


def resolve(attacks: Sequence[Attack], threat: Threat, temperature: float) -> dict[str, Attack]:
    """The attacks as they will run, by name: with a threat model, and strong ones with the model's temperature.

    An attack with a threat model of its own bears it in its name. A strong version at T = 1 is the attack itself, so
    it is left out.

    Raises:
        ValueError: where two attacks would have the same name.
    """
    resolved: dict[str, Attack] = {}
    for given in attacks:
        attack = given.under(threat)
        if isinstance(attack, Strong):
            attack = attack.at(temperature)
            if attack.temperature == 1:
                continue
        name = given.name if str(attack.threat) == str(threat) else f"{given.name} {attack.threat}"
        if name in resolved:
            raise ValueError(f"The suite holds {name} more than once; each attack of a suite needs a name of its own.")
        resolved[name] = attack
    return resolved


def run_suite(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor, Tensor]],
    attacks: Sequence[Attack],
    threat: Threat,
    temperature: float = 1.0,
    seed: int = 0,
    examples: int = 8,
    title: str = "",
    console: Console | None = None,
) -> SuiteResult:
    """Attacks every image that the model classifies correctly, with each attack in turn.

    Args:
        model: maps images to logits; it is left exactly as it was.
        batches: (images in the box (B, C, H, W), labels (B,), indices (B,)), on the model's device.
        attacks: the attacks; one without a threat model of its own gets ``threat``.
        threat: the threat model.
        temperature: the temperature that the model was trained at, for strong attacks that name none.
        seed: with an image's index, what its random draws follow from.
        examples: how many clean and adversarial images to keep for figures.
        title: what the progress bar calls the model.
        console: where the progress bar is drawn; None for no bar.

    Raises:
        ValueError: for no images, images outside the box, or logits that are not finite.
    """
    named = resolve(attacks, threat, temperature)
    if not sum(len(y) for _, y, _ in batches):
        raise ValueError("The suite was given no images to attack.")
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("robust {task.fields[robust]}"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )
    began = time.perf_counter()
    clean = [_predict(model, x, threat, attack=None) for x, _, _ in batches]
    label = torch.cat([y for _, y, _ in batches])
    index = torch.cat([index for _, _, index in batches]).cpu().numpy()
    result = SuiteResult(
        index=index,
        label=label.cpu().numpy(),
        predictions={CLEAN: torch.cat(clean).cpu().numpy()},
        distances={},
        seconds={CLEAN: time.perf_counter() - began},
        threats={name: attack.threat for name, attack in named.items()},
        shown=index[:examples],
    )
    with bar:
        for name, attack in named.items():
            began = time.perf_counter()
            task = bar.add_task(f"{title} {name}", total=len(label), robust="–")
            predictions, distances = [], []
            kept: list[tuple[Tensor, Tensor]] = []
            right = 0
            for (x, y, indices), before in zip(batches, clean, strict=True):
                x_adv, after = x.clone(), before.clone()
                stands = torch.eq(before, y)
                if stands.any():
                    x_adv[stands] = attack(model, x[stands], y[stands], Draws(indices[stands], seed))
                    found = _predict(model, x_adv[stands], attack.threat, name)
                    # An example that the threat model does not allow is no success.
                    after[stands] = torch.where(attack.threat.holds(x_adv[stands], x[stands]), found, before[stands])
                predictions.append(after)
                distances.append(attack.threat.distance(x_adv, x))
                if sum(len(done) for done, _ in kept) < examples:
                    kept.append((x.cpu(), x_adv.cpu()))
                right += int(torch.eq(after, y).sum())
                done = sum(map(len, predictions))
                bar.update(task, completed=done, robust=f"{right / done:.1%}")
            result.predictions[name] = torch.cat(predictions).cpu().numpy()
            result.distances[name] = torch.cat(distances).cpu().numpy()
            result.seconds[name] = time.perf_counter() - began
            before_and_after = [torch.cat(part)[:examples] for part in zip(*kept, strict=True)]
            result.examples[name] = (before_and_after[0], before_and_after[1])
    return result


def _predict(model: nn.Module, x: Tensor, threat: Threat, attack: str | None) -> Tensor:
    """Predicted classes in float32, after a check that nothing is being judged that should not be."""
    low, high = threat.bounds
    slack = 1e-5 * (high - low)
    if not x.is_floating_point() or x.amin() < low - slack or x.amax() > high + slack:
        whose = "Images" if attack is None else f"Images from {attack}"
        raise ValueError(
            f"{whose} are {x.dtype} in [{x.amin():g}, {x.amax():g}], expected floats in [{low:g}, {high:g}]: "
            "scale them (x / 255 for bytes) or give the threat model their box."
        )
    with crafting(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        logits = model(x)
    if not logits.isfinite().all():
        raise ValueError("The model returned logits that are not finite, so its predictions mean nothing.")
    return logits.argmax(1)
