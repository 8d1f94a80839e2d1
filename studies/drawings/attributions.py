"""What all runs see in one image, and what a weak and a strong attack make of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from attacks.base import Attack
from attacks.suite import resolve
from attacks.threat import Threat
from attacks.wrappers import Strong
from interpret.attributions import Method, explain
from interpret.figures import WRONG, attack_figure, class_name, model_figure, probability
from interpret.gallery import Attacked, attacked
from networks import Facts
from networks.checkpoint import Loaded
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry
from studies.drawings.networks import data_of, judging_config, loaded, made
from studies.gather import Ran, Results

ACROSS = 4  # tiles side by side
TILES = 23  # on a page, besides the image
UNBROKEN = "\u00a0"  # a space at which no line ends
SEED = 0  # of an attack's draws


class Seen(NamedTuple):
    """What one network makes of the image: its maps (C or 1, H, W) by method, its class and that one's probability."""

    maps: Mapping[str, np.ndarray]
    predicted: int
    p: float


class Broken(NamedTuple):
    """What attacks make of the image, under which threat model, and the temperature of the network's training."""

    found: Attacked
    threat: Threat
    trained_at: float


def attributions(
    results: Results,
    entries: Sequence[Entry],
    *,
    method: str | Sequence[str],
    image: int = 0,
    attack: Mapping[str, Any] | None = None,
    judge: str | None = None,
) -> list[Drawn]:
    """One image under every run, map, class and probability (001, figures 7, 9, 16, 33 to 39), and attacked (6)."""
    methods = [made(Method, f"interpret.{one}") for one in common.listed(method)]
    if (first := common.trained(results, entries)) is None:
        return common.nothing(common.left_out(results, entries, (), "weights"))
    data = data_of(first)
    facts, index = data.facts, data.split_index("test")
    if facts.size == 1 or not 0 <= image < len(index):
        raise ValueError(f"Attributions are of one of {len(index)} test images, got image {image} of {facts.shape}.")
    shown = data.batch("test", index[image : image + 1])[:3]
    x, y, _ = shown

    def see(ran: Ran) -> Seen:
        return _seen(loaded(ran, results.study.checkpoint), x, y, methods)

    seen, faults = common.look(results, entries, see, "attributions")
    missing = common.left_out(results, entries, seen, "weights", faults)
    drawn = [entry for entry in entries if entry.run in seen]
    if not drawn:
        return common.nothing(missing)
    names = [one.name for one in methods]
    groups = [[(entry, name) for entry in drawn] for name in names]
    if len(drawn) == 1:
        groups = [[tile for group in groups for tile in group]]
    found = []
    for own in (part for group in groups for part in style.pages(group, TILES)):
        found.append(_tiles(own, seen, x[0].numpy(), int(y), facts, many=len(drawn) == 1))
    if attack is not None:
        chosen = made(Attack, attack)

        def broken(ran: Ran) -> Broken:
            return _attacked(ran, results.study.checkpoint, shown, chosen, judge, facts.box)

        under, faults = common.look(results, drawn, broken, "attacks")
        found += [_pair(entry, under[entry.run], facts) for entry in drawn if entry.run in under]
        missing = style.sentences(missing, common.left_out(results, drawn, under, "a judging", faults))
    last = found[-1]
    return [*found[:-1], Drawn(last.figure, last.alt, style.sentences(last.caption, missing))]


def _seen(loaded: Loaded, x: Tensor, y: Tensor, methods: Sequence[Method]) -> Seen:
    """All networks explain the same class, the true one."""
    explained = explain(loaded.network, x, y, methods)
    p, predicted = explained.logits.double().softmax(1).max(1)
    return Seen({name: maps.values[0].numpy() for name, maps in explained.maps.items()}, int(predicted), float(p))


def _tiles(
    tiles: Sequence[tuple[Entry, str]],
    seen: Mapping[str, Seen],
    image: np.ndarray,
    label: int,
    facts: Facts,
    many: bool,
) -> Drawn:
    """The image and its maps, by run or, of one run, by method."""
    maps = {}
    for entry, name in tiles:
        own = seen[entry.run]
        said = f"{class_name(own.predicted, facts)}, " + f"p = {probability(own.p)}".replace(" ", UNBROKEN)
        maps[f"{name if many else entry.label()}: {said}"] = own.maps[name]
    figure = model_figure(image, maps, facts, across=ACROSS)
    assert figure is not None
    wrong = [entry.label() for entry, _ in tiles if seen[entry.run].predicted != label]
    for ax, (entry, _) in zip(figure.axes[1:], tiles, strict=False):
        if seen[entry.run].predicted != label:
            ax.title.set_color(WRONG)
    what = (
        f"{style.of(len(tiles), 'method')}, {tiles[0][0].label()}"
        if many
        else f"{tiles[0][1]} of {style.of(len(tiles))}"
    )
    true = class_name(label, facts)
    told = f"{len(wrong)} of {len(tiles)} predict another class ({style.some(wrong)})" if wrong else "all predict it"
    p = style.range_of((seen[entry.run].p for entry, _ in tiles), "").strip()
    alt = f"One test image of class {true} and its attribution maps: {what}; {told}, with probabilities of {p}."
    caption = (
        f"Maps of the true class, {true}, absolute, of unit length, on one colour scale; above each the predicted "
        "class and its probability, red where it is wrong. The first seed."
    )
    return Drawn(figure, alt, f"{tiles[0][1] if not many else tiles[0][0].label()}. {caption}")


def _attacked(
    ran: Ran, checkpoint: str, image: Sequence[Tensor], attack: Attack, judge: str | None, box: tuple[float, float]
) -> Broken:
    """Crafts the example and its strong version, under the threat model that the run was judged by."""
    config = judging_config(ran, judge)
    own = loaded(ran, checkpoint)
    threat = made(Threat, config["suite"]["threat"]).within(box)
    attacks = resolve((attack, Strong(attack)), threat, own.trained_at)
    x, y, index = image
    return Broken(attacked(own.network, x, y, index, attacks, SEED), threat, own.trained_at)


def _pair(entry: Entry, under: Broken, facts: Facts) -> Drawn:
    """The weak and the strong example, one below the other."""
    found = under.found
    figure = attack_figure(*found, facts)
    assert figure is not None
    ends = []
    for name, (x_adv, p) in found.examples.items():
        change = np.abs(x_adv - found.image).max()
        ends.append(f"after {name} {_answer(p, facts)}, largest change {change:.3g}")
    alt = (
        f"{entry.label()}, an image of class {class_name(found.label, facts)}, predicted "
        f"{_answer(found.clean, facts)}: {'; '.join(ends)}."
    )
    strong = " Trained at T = 1, it has no strong version of its own." if under.trained_at == 1 else ""
    caption = f"{entry.label()} under {under.threat}: the image, the perturbation, the example.{strong}"
    return Drawn(figure, alt, caption)


def _answer(p: np.ndarray, facts: Facts) -> str:
    """The class of the highest of some probabilities, and that one."""
    return f"{class_name(int(p.argmax()), facts)} with p = {probability(float(p.max()))}"
