"""How strongly networks react: amplitudes of their Jacobian, and the loss's gradient in their layers."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from interpret.charts import NUMBERED, bin_label, gradient_scale, layer_panel
from interpret.figures import SMALL, wrapped
from interpret.sensitivity import NAMES, amplitudes, heat_map, shares
from studies.drawings import common, style
from studies.drawings.common import Drawn, Entry
from studies.drawings.networks import data_of, first_images, loaded
from studies.gather import Ran, Results

ROW = 0.46  # inches of a histogram
ABREAST = 2  # heat maps side by side
Heat = Mapping[str, Mapping[str, float]]


def sensitivity(
    results: Results,
    entries: Sequence[Entry],
    *,
    judge: str | None = None,
    model: str = "own",
    images: int | None = None,
) -> list[Drawn]:
    """Histograms of gradient amplitudes in the paper's bins, one below the other (000, figure 8)."""
    if images is not None and model != "own":
        raise ValueError("Amplitudes are computed of a run's own model: leave images out for those of its teacher.")
    if images:
        found, faults = common.look(results, entries, lambda ran: _computed(ran, results, images), "amplitudes")
        seeds = f"{images} images, one seed"
    else:
        (found, seeds), faults = _recorded(results, entries, judge, model), {}
    missing = common.left_out(results, entries, found, "amplitudes", faults)
    drawn = [entry for entry in entries if entry.run in found]
    if not drawn:
        return common.nothing(missing)
    parts = list(style.pages(drawn, int((style.PAGE - 0.6) / ROW)))
    made = []
    for number, part in enumerate(parts, 1):
        caption = style.sentences(
            style.part_of(number, len(parts)),
            f"Share of the images, in %, by the mean absolute entry of their Jacobian; {seeds}.",
            missing if number == len(parts) else "",
        )
        made.append(Drawn(_histograms(part, found), _told(part, found), caption))
    return made


def _recorded(
    results: Results, entries: Sequence[Entry], judge: str | None, model: str
) -> tuple[dict[str, np.ndarray], str]:
    """Shares (10,) by run, means over the seeds, as the judgings have them."""
    found, counts, n = {}, set(), set()
    for run in dict.fromkeys(entry.run for entry in entries):
        rows = []
        for name in NAMES:
            records = list(results.values(run, f"amplitude of probabilities {name}", judge, model).values())
            rows.append([record.value for record in records])
            n |= {record.n for record in records}
        if rows[0]:
            found[run] = np.mean(rows, axis=1)
            counts.add(len(rows[0]))
    return found, f"{_range(n)} images, {_range(counts)} seed{'s' * (counts != {1})}"


def _computed(ran: Ran, results: Results, images: int) -> np.ndarray:
    """The same of one run, computed now."""
    network = loaded(ran, results.study.checkpoint).network
    return shares(amplitudes(network, first_images(data_of(ran), images)))


def _range(values: set[int]) -> str:
    return f"{min(values)}" if len(values) == 1 else f"{min(values, default=0)} to {max(values, default=0)}"


def _histograms(part: Sequence[Entry], found: Mapping[str, np.ndarray]) -> Figure:
    layout = ConstrainedLayoutEngine(h_pad=0.01, hspace=0)
    figure = Figure(figsize=(style.WIDTH, ROW * len(part) + 0.65), layout=layout)
    axes = figure.subplots(len(part), squeeze=False, sharex=True)[:, 0]
    high = 100 * max(found[entry.run].max() for entry in part)
    for ax, entry in zip(axes, part, strict=True):
        values = 100 * found[entry.run]
        ax.bar(range(len(NAMES)), values, 0.86, color=style.INKS[1])
        for place, value in enumerate(values):
            if value:
                above = {"xytext": (0, 1.5), "textcoords": "offset points", "ha": "center"}
                ax.annotate(f"{value:.0f}" if value >= 1 else "< 1", (place, value), fontsize=SMALL - 1, **above)
        label = wrapped(entry.label(), 24)
        ax.set_ylabel(label, fontsize=SMALL, rotation=0, ha="right", va="center")
        ax.set(ylim=(0, 1.6 * high), yticks=[], xlim=(-0.6, len(NAMES) - 0.4))
        style.clean(ax)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="x", length=2)
    axes[-1].set_xticks(range(len(NAMES)), [bin_label(name) for name in NAMES], fontsize=SMALL - 1)
    axes[-1].set_xlabel("mean absolute entry of dF/dX, F the probabilities", fontsize=SMALL)
    return figure


def _told(part: Sequence[Entry], found: Mapping[str, np.ndarray]) -> str:
    """What the histograms show, in words: what vanishes to less than 1e-40, and where most images are."""
    parts = []
    for entry in part[: style.NAMED]:
        values = 100 * found[entry.run]
        most = int(values.argmax())
        parts.append(f"{entry.label()}: most ({values[most]:.0f} %) at {NAMES[most]}, {values[0]:.0f} % below 1e-40")
    more = f"; and {len(part) - style.NAMED} more" * (len(part) > style.NAMED)
    return f"Histograms of gradient amplitudes of {style.of(len(part))}. {'; '.join(parts)}{more}."


def layers(results: Results, entries: Sequence[Entry], *, images: int = 100) -> list[Drawn]:
    """The mean absolute gradient of every layer of every stage, a panel for each run (003, figure 1)."""

    def heat(ran: Ran) -> Heat:
        return heat_map(loaded(ran, results.study.checkpoint).network, first_images(data_of(ran), images))

    found, faults = common.look(results, entries, heat, "gradients by layer")
    missing = common.left_out(results, entries, found, "weights", faults)
    drawn = [entry for entry in entries if entry.run in found]
    if not drawn:
        return common.nothing(missing)
    high = 0.62 + 0.24 * max(map(len, found.values()))
    parts = list(style.pages(drawn, ABREAST * max(1, int((style.PAGE - 0.5) / high))))
    made = []
    for number, part in enumerate(parts, 1):
        figure = _heat_maps(part, found, high)
        values = [value for entry in part for stage in found[entry.run].values() for value in stage.values()]
        alt = (
            f"Heat maps of the loss's mean absolute gradient in the weights, by stage (row) and layer (column), of "
            f"{style.of(len(part))} on one logarithmic scale: {style.range_of(values, '')}".rstrip()
            + ". "
            + "; ".join(f"{entry.label()} strongest in {_strongest(found[entry.run])}" for entry in part[: style.NAMED])
            + "."
        )
        caption = style.sentences(
            style.part_of(number, len(parts)),
            f"{images} test images, cross-entropy at T = 1, the first seed.",
            missing if number == len(parts) else "",
        )
        made.append(Drawn(figure, alt, caption))
    return made


def _heat_maps(part: Sequence[Entry], found: Mapping[str, Heat], high: float) -> Figure:
    across = min(ABREAST, len(part))
    down = -(-len(part) // across)
    figure = Figure(figsize=(style.WIDTH, high * down + 0.55), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    norm = gradient_scale(found)
    widest = max(len(layers) for stages in found.values() for layers in stages.values())
    for ax, entry in zip(axes.flat, part, strict=False):
        shown = layer_panel(ax, found[entry.run], norm, widest <= NUMBERED // across)
        ax.set_title(wrapped(entry.label(), 36), fontsize=SMALL, pad=3)
    for ax in axes.flat[len(part) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("layer of the stage", fontsize=SMALL - 1, labelpad=1)
    bar = figure.colorbar(shown, ax=axes, location="bottom", aspect=40, shrink=0.7, pad=0.02)
    ends = [float(end) for end in np.geomspace(*shown.get_clim(), 3)]
    bar.set_ticks(ends, labels=[f"{end:.1e}" for end in ends])
    bar.minorticks_off()
    bar.set_label("mean |dL/dW|", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)
    return figure


def _strongest(stages: Heat) -> str:
    """The place of a network's largest gradient."""
    value, stage, layer = max((value, stage, layer) for stage, own in stages.items() for layer, value in own.items())
    return f"{stage} {layer} ({style.number(value)})"
