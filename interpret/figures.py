"""Pictures of images and of what networks see in them; each function draws one file and returns its path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from networks import Facts

COUNT = 8  # images in a grid
ACROSS = 6  # maps side by side before the next row begins
SMALL = 8  # points
LONGEST = 14  # characters of a class name above an image
WRONG = "firebrick"
DIVERGING = mpl.colormaps["RdBu_r"]  # white is 0; red and blue are told apart by the colour-blind too
RISING = mpl.colors.ListedColormap(DIVERGING(np.linspace(0.5, 1, 128)))  # its upper half
CLIPPED = 99.5  # percentile of the absolute values at which the colours end: one extreme pixel must not pale the rest


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure, a raster image at 150 dpi; a path that ends in .pdf or .svg makes a vector drawing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def attribution_grid(
    images: np.ndarray,
    student: np.ndarray,
    teacher: np.ndarray,
    facts: Facts,
    path: Path,
    *,
    absolute: bool = True,
    captions: Sequence[str] = (),
    title: str = "",
) -> Path | None:
    """Draws images, the teacher's maps, the student's and their difference, on one colour scale for all.

    A map is drawn as the sum over its channels, divided by its Euclidean length: the cosine, by which adherence is
    measured, ignores how large gradients are, and so must a scale that is shared by a network trained at T = 1 and one
    trained at 100. The difference is of the two drawn maps, student minus teacher.

    Args:
        images: in the dataset's box, (n, C, H, W); the first 8 are drawn.
        student: its signed maps, (n, C or 1, H, W).
        teacher: likewise.
        facts: the dataset's.
        path: of the picture.
        absolute: draw absolute values, as adherence compares them; False for signed ones.
        captions: above each image, such as its class and its adherence.
        title: the method.

    Returns:
        The file's path; None for points in the plane, which are no pictures.
    """
    if not _drawable(facts):
        return None
    images, student, teacher = images[:COUNT], _unit(student[:COUNT], absolute), _unit(teacher[:COUNT], absolute)
    count = len(images)
    rows = {"teacher": teacher, "student": student, "difference": student - teacher}
    limit = _limit(np.concatenate(list(rows.values())))
    figure = Figure(figsize=(1.1 * count + 1.3, 4.6 + 0.25 * bool(title)), layout="constrained")
    axes = figure.subplots(4, count, squeeze=False)
    for column in range(count):
        _image(axes[0, column], images[column], facts)
        if captions:
            axes[0, column].set_title(captions[column], fontsize=SMALL, pad=3)
        for row, maps in enumerate(rows.values(), 1):
            shown = _map(axes[row, column], maps[column], limit)
    for row, name in enumerate(("image", *rows)):
        side = "student\n− teacher" if name == "difference" else name
        axes[row, 0].set_ylabel(side, fontsize=SMALL)
    _bar(figure, shown, axes[1:, :], absolute)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def model_row(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    facts: Facts,
    path: Path,
    *,
    absolute: bool = True,
    title: str = "",
) -> Path | None:
    """Draws one image and its maps under many models, on one colour scale (001, figure 36).

    Args:
        image: in the dataset's box, (C, H, W).
        maps: signed maps (C or 1, H, W), by what their model is called; drawn as in :func:`attribution_grid`.
        facts: the dataset's.
        path: of the picture.
        absolute: draw absolute values.
        title: the method.

    Returns:
        The file's path; None for points in the plane.
    """
    figure = model_figure(image, maps, facts, absolute=absolute, title=title)
    return None if figure is None else save(figure, path)


def model_figure(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    facts: Facts,
    *,
    absolute: bool = True,
    title: str = "",
    across: int = ACROSS,
) -> Figure | None:
    """The figure of :func:`model_row`, the image first, then the maps in their order, so many side by side."""
    if not _drawable(facts):
        return None
    drawn = {name: _unit(values[None], absolute)[0] for name, values in maps.items()}
    limit = _limit(np.stack(list(drawn.values())))
    names = {name: wrapped(name) for name in drawn}
    across = min(across, len(drawn) + 1)
    down = -(-(len(drawn) + 1) // across)
    lines = max(name.count("\n") + 1 for name in names.values())
    height = (1.3 + 0.14 * lines) * down + 0.3 * bool(title)
    figure = Figure(figsize=(1.35 * across + 0.9, height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    _image(axes.flat[0], image, facts)
    axes.flat[0].set_title("image", fontsize=SMALL, pad=3)
    for ax, (name, values) in zip(axes.flat[1:], drawn.items(), strict=False):
        shown = _map(ax, values, limit, absolute)
        ax.set_title(names[name], fontsize=SMALL - 1, pad=3)
    for ax in axes.flat[len(drawn) + 1 :]:
        ax.set_axis_off()
    _bar(figure, shown, axes, absolute)
    figure.suptitle(title, fontsize=10)
    return figure


def attack_pair(
    image: np.ndarray,
    clean: np.ndarray,
    examples: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label: int,
    facts: Facts,
    path: Path,
) -> Path | None:
    """Draws what several attacks, such as a weak and a strong one, did to one image (001, figure 6).

    A row for each attack: the image, the perturbation, the adversarial image, with the predicted classes and their
    probabilities, red where they are wrong. The perturbations share one scale.

    Args:
        image: in the dataset's box, (C, H, W).
        clean: probabilities of the image's classes, (classes,).
        examples: adversarial image (C, H, W) and its classes' probabilities, by the attack's name.
        label: the image's class.
        facts: the dataset's.
        path: of the picture.

    Returns:
        The file's path; None for points in the plane.
    """
    figure = attack_figure(image, clean, examples, label, facts)
    return None if figure is None else save(figure, path)


def attack_figure(
    image: np.ndarray,
    clean: np.ndarray,
    examples: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label: int,
    facts: Facts,
) -> Figure | None:
    """The figure of :func:`attack_pair`."""
    if not _drawable(facts):
        return None
    deltas = {name: x_adv - image for name, (x_adv, _) in examples.items()}
    reach = max(float(np.abs(delta).max()) for delta in deltas.values()) or 1.0
    figure = Figure(figsize=(5.4, 1.92 * len(examples) + 0.42), layout="constrained")
    axes = figure.subplots(len(examples), 3, squeeze=False)
    for row, (name, (x_adv, found)) in enumerate(examples.items()):
        _image(axes[row, 0], image, facts)
        axes[row, 0].set_ylabel(wrapped(name), fontsize=SMALL + 1)
        grey = 0.5 + deltas[name] / (2 * reach)
        axes[row, 1].imshow(grey.transpose(1, 2, 0).clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        axes[row, 1].set(xticks=[], yticks=[])
        most = float(np.abs(deltas[name]).max())
        axes[row, 1].set_title(f"largest change {most:.3g}" if most else "no change", fontsize=SMALL, pad=3)
        _image(axes[row, 2], x_adv, facts)
        for ax, values in ((axes[row, 0], clean), (axes[row, 2], found)):
            predicted = int(values.argmax())
            said = f"{class_name(predicted, facts)}, p = {probability(float(values[predicted]))}"
            ax.set_title(said, fontsize=SMALL, pad=3, color="black" if predicted == label else WRONG)
    for ax, name in zip(axes[-1], ("image", f"perturbation\n(grey 0, white {reach:.3g})", "example"), strict=True):
        ax.set_xlabel(name, fontsize=SMALL)
    return figure


def _drawable(facts: Facts) -> bool:
    return facts.size > 1 and facts.channels in (1, 3)


def class_name(number: int, facts: Facts) -> str:
    """What pictures call a class: its name, cut to what fits above an image, or its number where it has none."""
    name = facts.names[number] if facts.names else str(number)
    return literal(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def literal(name: str) -> str:
    """A name as it is: between two dollars matplotlib would read mathematics, and raise where it is none."""
    return name.replace("$", r"\$")


def probability(p: float) -> str:
    """Two digits, but never 1.00 of what is not 1 to float32's precision."""
    return f"{p:.2f}" if p < 0.995 else f"1 - {1 - p:.0e}".replace("e-0", "e-") if p < 1 - 1e-7 else "1"


def _unit(maps: np.ndarray, absolute: bool) -> np.ndarray:
    """Maps (n, C, H, W) summed over channels, of unit length, (n, H, W); an all-zero one stays so."""
    flat = (np.abs(maps) if absolute else maps).astype(float).sum(1)
    # Scaled first: the squares of a small gradient underflow.
    for norm in (np.abs(flat).max((1, 2), keepdims=True), None):
        length = np.sqrt((flat**2).sum((1, 2), keepdims=True)) if norm is None else norm
        flat = flat / np.where(length > 0, length, 1)
    return flat


def _limit(maps: np.ndarray) -> float:
    return float(np.percentile(np.abs(maps), CLIPPED)) or 1.0


def _image(ax: Axes, image: np.ndarray, facts: Facts) -> None:
    low, high = facts.box
    shown = ((image - low) / (high - low)).transpose(1, 2, 0).clip(0, 1).squeeze()
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])


def _map(ax: Axes, values: np.ndarray, limit: float, rising: bool = False) -> AxesImage:
    ax.set(xticks=[], yticks=[])
    return ax.imshow(values, cmap=RISING if rising else DIVERGING, vmin=0 if rising else -limit, vmax=limit)


def _bar(figure: Figure, shown: AxesImage, axes: np.ndarray, absolute: bool) -> None:
    ends = "max" if shown.norm.vmin == 0 else "both"
    bar = figure.colorbar(shown, ax=axes, extend=ends, shrink=0.9, aspect=30 if len(axes) > 1 else 12, pad=0.02)
    bar.set_label(f"{'absolute ' * absolute}attribution\n(maps of unit length)", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)


def wrapped(name: str, width: int = 17) -> str:
    """A name in short lines, broken at spaces and, where it has none, behind underscores."""
    lines = [""]
    for word in name.replace("_from_", " from ").split(" "):
        for part in [word] if len(word) <= width else word.replace("_", "_ ").split(" "):
            glue = "" if lines[-1].endswith("_") or not lines[-1] else " "
            if lines[-1] and len(lines[-1] + glue + part) > width:
                lines.append(part)
            else:
                lines[-1] += glue + part
    return literal("\n".join(lines))
