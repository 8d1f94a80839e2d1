"""Losses and accuracies by epoch."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interpret.figures import SMALL, literal
from lightning_modules.run_folder import PANELS, by_epoch
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry
from studies.gather import Results

ABREAST = 8  # runs whose lines can be told apart
STYLES = {"train/loss": "-", "val/loss": "--", "val/acc": "-", "val/robust_acc": "--"}
Curves = Mapping[str, Mapping[int, float]]


def losses(results: Results, entries: Sequence[Entry]) -> list[Drawn]:
    """Losses and accuracies of each run, a colour each, a thin line for each seed (001, figures 4, 12, 17)."""
    found = {
        entry.run: [by_epoch(ran.folder) for ran in results.of(entry.run).values() if ran.planned.trained]
        for entry in entries
    }
    found = {run: [each for each in curves if STYLES.keys() & each.keys()] for run, curves in found.items()}
    drawn = [entry for entry in entries if found[entry.run]]
    missing = common.left_out(results, entries, [entry.run for entry in drawn], "metrics by epoch")
    if not drawn:
        return common.nothing(missing)
    parts = list(style.pages(drawn, ABREAST))
    made = []
    for number, part in enumerate(parts, 1):
        figure = _page(part, found)
        seeds = {len(found[entry.run]) for entry in part}
        lines = f"A line for each of {max(seeds)} seeds." if max(seeds) > 1 else "One seed."
        caption = style.sentences(style.part_of(number, len(parts)), lines, missing if number == len(parts) else "")
        made.append(Drawn(figure, f"Training curves of {style.of(len(part))}. {_told(part, found)}", caption))
    return made


def _page(part: Sequence[Entry], found: Mapping[str, Sequence[Curves]]) -> Figure:
    known = {key for entry in part for curves in found[entry.run] for key in curves}
    panels = {title: [key for key in keys if key in known] for title, keys in PANELS.items()}
    panels = {title: keys for title, keys in panels.items() if keys}
    figure = Figure(figsize=(style.WIDTH, 2.4 * len(panels) + 0.3), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for ax, (title, keys) in zip(axes, panels.items(), strict=True):
        scale = 100 if title == "accuracy" else 1
        values: list[float] = []
        for number, entry in enumerate(part):
            for curves in found[entry.run]:
                for key in keys:
                    curve = curves.get(key, {})
                    values += curve.values()
                    shown = [scale * value for value in curve.values()]
                    ax.plot(list(curve), shown, STYLES[key], color=style.INKS[number], linewidth=0.9, alpha=0.85)
            # Without data: the legend's, wider than a seed's.
            ax.plot([], [], color=style.INKS[number], linewidth=2.5, label=literal(entry.label()))
        ax.set_ylabel(f"{title}, %" if scale == 100 else title, fontsize=SMALL + 1)
        ax.set_title(
            "   ".join(f"{'solid' if STYLES[key] == '-' else 'dashed'}: {key}" for key in keys), fontsize=SMALL
        )
        if scale == 1 and min(values) > 0 and max(values) > 50 * min(values):
            ax.set_yscale("log")
        style.clean(ax)
        ax.grid(axis="y", color=style.GRID, linewidth=0.6)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("epoch", fontsize=SMALL + 1)
    style.legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _told(part: Sequence[Entry], found: Mapping[str, Sequence[Curves]]) -> str:
    """Where the curves end, in words."""
    ends = []
    for entry in part:
        last = [list(curves["train/loss"].values())[-1] for curves in found[entry.run] if "train/loss" in curves]
        if last:
            ends.append(f"{entry.label()} at a training loss of {style.range_of(last, '').strip()}")
    return f"They end with {', '.join(ends)}." if ends else ""
