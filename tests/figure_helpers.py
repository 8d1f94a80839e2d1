"""What every figure must be, whichever package draws it: all its text inside of it, and none on another."""

from itertools import combinations

from matplotlib import _pylab_helpers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def texts(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Every text that a figure shows, and where it is, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    if figure._suptitle is not None:
        shown.append(figure._suptitle)
    for ax in figure.axes:
        if ax.axison:
            # An axis holds more ticks than it draws.
            ticks = [tick for axis in (ax.xaxis, ax.yaxis) for tick in axis._update_ticks()]
            shown += [label for tick in ticks for label in (tick.label1, tick.label2)]
            shown += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    found = dict.fromkeys(text for text in shown if text.get_visible() and text.get_text().strip())
    return [(text, text.get_window_extent(canvas.get_renderer())) for text in found]


def assert_placed(figure: Figure) -> None:
    """No text is cut off or lies on another, and pyplot knows nothing of it."""
    assert not _pylab_helpers.Gcf.figs
    width, height = figure.bbox.width, figure.bbox.height
    found = [(text.get_text(), box) for text, box in texts(figure)]
    for text, box in found:
        assert min(box.x0, box.y0) > -2, f"{text!r} is cut off"
        assert box.x1 < width + 2, f"{text!r} is cut off"
        assert box.y1 < height + 2, f"{text!r} is cut off"
    for (one, here), (other, there) in combinations(found, 2):
        overlap = min(here.x1, there.x1) - max(here.x0, there.x0), min(here.y1, there.y1) - max(here.y0, there.y0)
        assert min(overlap) < 2, f"{one!r} lies on {other!r}"
