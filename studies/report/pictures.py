"""Figures as a page carries them."""

import io
from base64 import b64encode
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

LARGE = 300_000  # bytes: a drawing of more is a picture, if that is smaller
ENLARGED = 1.25  # on a screen that has the room: figures are made to be read on a phone, and in print


@dataclass(frozen=True)
class Picture:
    """A figure, drawn.

    Attributes:
        title: above it.
        alt: what is to be seen on it.
        caption: below it.
        kind: ``svg`` or ``png``.
        content: of the file.
        width: in CSS pixels.
        height: likewise.
    """

    title: str
    alt: str
    caption: str
    kind: str
    content: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The file inside of its own address."""
        mime = {"svg": "image/svg+xml", "png": "image/png"}[self.kind]
        return f"data:{mime};base64,{b64encode(self.content).decode()}"


def picture(figure: Figure, title: str, alt: str, caption: str) -> Picture:
    """A figure as a vector drawing, or as a raster image where that is the smaller of two large ones."""
    content, kind = _drawn(figure, "svg"), "svg"
    if len(content) > LARGE and len(raster := _drawn(figure, "png")) < len(content):
        content, kind = raster, "png"
    width, height = (round(ENLARGED * 96 * inches) for inches in figure.get_size_inches())
    return Picture(title, alt, caption, kind, content, width, height)


def _drawn(figure: Figure, kind: str) -> bytes:
    """The figure's file, the same for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "tempered"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=150, facecolor="white", metadata=metadata)
    return buffer.getvalue()
