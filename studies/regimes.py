"""The README's tables of regimes and of noise, read from the code: ``python -m studies.regimes``."""

import inspect
import re
from pathlib import Path

import lightning_modules
from lightning_modules import Distiller, Noise, Regime

ROOT = Path(__file__).parents[1]


def exported(base: type) -> list[type]:
    """The classes that ``lightning_modules`` exports and that can be used, not only built on."""
    found = [getattr(lightning_modules, name) for name in lightning_modules.__all__]
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, base) and cls not in (base, Distiller)]


def said(cls: type, pattern: str) -> str:
    """What a pattern finds in a class's docstring.

    Raises:
        ValueError: where it finds nothing.
    """
    text = re.sub(r"\s+", " ", inspect.cleandoc(cls.__doc__ or ""))
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"The docstring of {cls.__name__} does not say {pattern!r}.")
    return match[1]


def summary(cls: type, pattern: str) -> str:
    """What a class's docstring begins with, as Markdown inside a table."""
    return said(cls, pattern).replace("``", "`").replace("|", "\\|")


def configs(name: str, pattern: str = "*.yaml") -> list[str]:
    """The configs that name a class: ``pattern`` chooses among those in ``configs/``."""
    paths = sorted((ROOT / "configs").glob(pattern))
    text = {path: path.read_text() for path in paths}
    folder = "" if "/" not in pattern else pattern.rpartition("/")[0] + "/"
    return [folder + path.stem for path in paths if re.search(rf"lightning_modules\.{name}\b", text[path])]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def regimes() -> str:
    """One line for each regime: its name, file, configs and source, and the student's passes per training step."""
    lines = [
        row("regime", "loss", "file", "configs", "source", "student's passes per step"),
        "|---|---|---|---|---|---|",
    ]
    for cls in sorted(exported(Regime), key=lambda cls: (inspect.getsourcefile(cls) or "", cls.__name__)):
        file = Path(inspect.getsourcefile(cls) or "").name
        source = said(cls, r"Source: (.+? \d{4})")
        passes = said(cls, r"Per step: student (.+?)[;.]")
        loss = summary(cls, r"^([^`.:;]*``.+?``|[^.:;]+)")
        lines.append(row(f"`{cls.__name__}`", loss, f"`{file}`", code(configs(cls.__name__)), source, passes))
    return "\n".join(lines)


def noises() -> str:
    """One line for each source of noise: its name, what the docstring's first sentence says, and its configs."""
    lines = [row("noise", "what it does", "configs"), "|---|---|---|"]
    for cls in exported(Noise):
        lines.append(
            row(f"`{cls.__name__}`", summary(cls, r"^(.+?)[.:](?: |$)"), code(configs(cls.__name__, "noise/*.yaml")))
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(regimes(), noises(), sep="\n\n")
