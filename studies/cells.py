"""What a grid is made of: runs, each with a seed, and how they are judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(frozen=True)
class Asked:
    """Configs, and options behind them.

    Attributes:
        configs: files of the command line, in their order.
        options: dotted options and their values, in their order.
    """

    configs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def then(self, other: "Asked") -> "Asked":
        """These, and the other's behind them."""
        return Asked(self.configs + other.configs, {**self.options, **other.options})

    def words(self) -> list[str]:
        """As arguments of a subcommand."""
        files = [word for path in self.configs for word in ("--config", path)]
        return files + [word for key, value in self.options.items() for word in _as_words(key, value)]


@dataclass(frozen=True)
class Cell:
    """One run: what is trained, with which seed, and how it is judged.

    Attributes:
        name: its name, the same for all its seeds.
        seed: of everything that is drawn.
        axes: where on the axes it lies.
        asked: its configs and options.
        teacher: the name of the run that teaches it.
        judgings: what it is judged by, in their order, by name.
    """

    name: str
    seed: int
    axes: Mapping[str, Any]
    asked: Asked
    teacher: str | None
    judgings: Mapping[str, Asked]

    @property
    def id(self) -> str:
        return f"{self.name} #{self.seed}"


@dataclass(frozen=True)
class Study:
    """A grid under one of its recipes.

    Attributes:
        name: of its file.
        recipe: ``paper``, ``short`` or ``quick``.
        title: what is studied.
        note: in what the recipe departs from the paper.
        source: which paper, which tables and figures.
        checkpoint: which weights are judged, ``best`` or ``last``.
        threads: of every process.
        group: how many runs share a process.
        axes: the study's axes.
        cells: every run with every seed.
        tables: what the report's tables hold, as the grid says it.
        claims: what the paper claims, as the grid says it.
        figures: what the report draws, as the grid says it.
    """

    name: str
    recipe: str
    title: str
    note: str
    source: str
    checkpoint: str
    threads: int
    group: int
    axes: Mapping[str, Sequence[Any]]
    cells: tuple[Cell, ...]
    tables: tuple[Mapping[str, Any], ...]
    claims: tuple[Mapping[str, Any], ...]
    figures: tuple[Mapping[str, Any], ...]

    @property
    def called(self) -> str:
        """Its name and its recipe's: of its folder, and of its runs' group at W&B."""
        return f"{self.name}-{self.recipe}"


def _as_words(option: str, value: Any) -> list[str]:
    said = value
    if not isinstance(value, str):
        said = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    # What begins with a dash would be read as an option.
    return [f"--{option}={said}"] if said.startswith("-") else [f"--{option}", said]
