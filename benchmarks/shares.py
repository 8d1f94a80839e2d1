"""What each optimisation of a step is worth: ``python -m benchmarks.shares [--quick]``.

A step of ARD at a = 1, or of KD, first as the released code computes it, then with our optimisations put in one after
another, all in turn within each round. Beside the time stands how far ARD's examples are from those of plain float32
arithmetic.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import PGD, Radius, Threat
from benchmarks.arms import FACTS, PAIRS, Options, Ours, Setting, regime, released
from benchmarks.common import Run, consoles, header, in_turn, ratios, read, said, show, spread
from benchmarks.released import EPS, STEP
from networks.mobilenet import FullPrecision

QUICK = ("--pairs", "cnn", "--batch", "4", "--rounds", "1", "--steps", "2")
PLAIN = Options(spared=False, batchnorm="train", folding=False, teacher=False, channels_last=False)
SPARED, MODE, COPY = (
    "no pass of clean images at a = 1",
    "batch-norm in eval mode while crafting",
    "a folded copy, channels last, to craft on",
)
FULL, COMPILED = "strided depthwise convolutions in float32", "compiled graphs"
# Each with those above it.
LADDER = {
    "batches augmented at once, on the device": PLAIN,
    SPARED: Options(batchnorm="train", folding=False, teacher=False, channels_last=False),
    MODE: Options(folding=False, teacher=False, channels_last=False),
    COPY: Options(teacher=False, channels_last=False),
    "a folded copy of the teacher answers": Options(channels_last=False),
    "channels last in the pass of the weights": Options(),
    "bfloat16 by autocast": Options("bf16", full=False),
    FULL: Options("bf16"),
    COMPILED: Options("bf16", compile=True),
}
COLUMNS = (
    "with",
    "ms per step",
    "time without it over with it",
    "released's time over it",
    "examples' values that differ",
)
LEGEND = (
    "Each line has what the lines above it have. Times over it: in the same round, median (lowest–highest).",
    "Examples differ: share of their values that lie over 1/255 from those of float32 in the order (B, C, H, W) "
    "without folding, for the same weights and starts, batch-norm in eval mode. Gain: what they add to the "
    "cross-entropy, judged in that float32, as a share of what those add. The networks are untrained.",
)


def ladder(method: str, on: Setting, compiled: bool = False) -> dict[str, Options]:
    """The rungs of :data:`LADDER` that are a method's, a network's and a device's."""
    with torch.device("meta"):
        student = PAIRS[on.pair][2](FACTS)
    has = any(isinstance(module, FullPrecision) for module in student.modules())
    asked = {FULL: on.device == "cpu" and has, COMPILED: compiled or on.device != "cpu"}
    asked |= dict.fromkeys((SPARED, MODE, COPY), method == "ARD")  # KD crafts nothing
    return {name: given for name, given in LADDER.items() if asked.get(name, True)}


def examples(on: Setting, given: Options) -> str:
    """How examples, crafted with some of the optimisations, compare with those that plain float32 crafts.

    Both have the same weights and starts; the loss that they reach is judged in plain float32.
    """
    plain = regime("ARD", on, Options(folding=False, channels_last=False)).network.eval()
    mine = regime("ARD", on, given)
    mine.network.load_state_dict(plain.state_dict())
    x = on.data()[: on.batch].to(on.device) / 255
    y = torch.arange(on.batch, device=on.device) % 10
    attack = PGD(Threat("linf", Radius(EPS)), on.steps, Radius(STEP))

    def crafted(model: nn.Module, precision: str) -> Tensor:
        torch.manual_seed(0)
        with torch.autocast(on.device, torch.bfloat16, enabled=precision == "bf16"):
            return attack(model, x, y)

    wanted, found = crafted(plain, "32"), crafted(mine.searched(x), given.precision)
    with torch.no_grad():
        clean, best, reached = (float(cross_entropy(plain(each), y)) for each in (x, wanted, found))
    return f"{((found - wanted).abs() > 1 / 255).float().mean():.1%}; {(reached - clean) / (best - clean):.1%}"


def rows(method: str, on: Setting, taken: dict[str, list[float]]) -> list[list[str]]:
    """The cells, by :data:`COLUMNS`; the last is ARD's."""
    names = list(taken)
    cells = [[names[0], f"{1000 * median(taken[names[0]]):,.1f}", "", "", ""]]
    for before, name in pairwise(names):
        share = examples(on, LADDER[name]) if method == "ARD" and LADDER[name].batchnorm == "eval" else ""
        worth, speed = (spread(ratios(taken[other], taken[name])) for other in (before, names[0]))
        cells.append([name, f"{1000 * median(taken[name]):,.1f}", worth, speed, share])
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description=__doc__)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), metavar="PAIR", help=", ".join(PAIRS))
    parser.add_argument("--method", choices=("ARD", "KD"), default="ARD")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="K, the steps of the attack")
    parser.add_argument(
        "--compile", action="store_true", help="compiled graphs on a CPU too: minutes until they are made"
    )
    options = read(parser, arguments, QUICK)
    say, out = consoles()
    out.print("\n".join(header("benchmarks.shares", said(arguments), options.device, ("torchvision",))))
    method = options.method
    crafts = method == "ARD"
    columns = COLUMNS if crafts else COLUMNS[:-1]
    for pair in options.pairs:
        on = Setting(pair, options.batch, options.steps, device=options.device)
        runs: dict[str, Run] = {"the released way": released(method, on)}
        runs |= {name: Ours(method, on, given) for name, given in ladder(method, on, options.compile).items()}
        taken = in_turn(runs, options.rounds, on.device, say, PAIRS[pair][0])
        title = f"{method}, {PAIRS[pair][0]}, batches of {on.batch}" + f", K = {on.steps}" * crafts
        show(out, title, columns, [cells[: len(columns)] for cells in rows(method, on, taken)])
    out.print("\n".join(LEGEND if crafts else LEGEND[:1]))


if __name__ == "__main__":
    main()
