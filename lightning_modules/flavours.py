"""The 20 flavours of distillation, by name, and the ordinary configs that they stand for.

Source: Zou et al. 2023 (001), §4.1: four teachers, full or reduced, trained at temperature 1 or T, and four students of
each, full or reduced, trained at 1 or T on soft labels that are always taken at T. Nothing here trains: a flavour is
one of :class:`~lightning_modules.Teacher` or :class:`~lightning_modules.DefensiveDistillation`, spelt out.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser
from torch import nn

from lightning_modules.teachers import as_words
from networks import Facts

Size = Literal["full", "reduced"]
GRAMMAR = re.compile(r"(?P<size>[FR])(?P<role>[TS])_temp(?P<at>[1T])(?:_from_(?P<teacher>.+))?")

NOTHING: dict[str, Any] = {}  # said of flavours; null says that there is none


@dataclass(frozen=True)
class Flavour:
    """One of the 20.

    Attributes:
        size: which of the two networks it is.
        tempered: whether it is trained at T; otherwise at 1.
        teacher: the flavour that its soft labels come from; None for a teacher, which learns from labels.
    """

    size: Size
    tempered: bool
    teacher: "Flavour | None" = None

    def __str__(self) -> str:
        role = "T" if self.teacher is None else "S"
        own = f"{self.size[0].upper()}{role}_temp{'T' if self.tempered else 1}"
        return own if self.teacher is None else f"{own}_from_{self.teacher}"

    @classmethod
    def parse(cls, name: str) -> "Flavour":
        """The flavour of this name.

        Raises:
            ValueError: where there is none.
        """
        if name not in NAMES:
            capitals = {valid.upper(): valid for valid in NAMES}
            nearest = capitals[get_close_matches(name.upper(), capitals, n=1, cutoff=0)[0]]
            raise ValueError(
                f"{name!r} is none of the 20 flavours: a teacher is {{F|R}}T_temp{{1|T}}, its student "
                f"{{F|R}}S_temp{{1|T}}_from_<teacher>. Did you mean {nearest}?"
            )
        return cls._matched(name)

    @classmethod
    def _matched(cls, name: str) -> "Flavour":
        found = GRAMMAR.fullmatch(name)
        assert found is not None
        teacher = found["teacher"] and cls._matched(found["teacher"])
        return cls("full" if found["size"] == "F" else "reduced", found["at"] == "T", teacher or None)


_TEACHERS = [Flavour(size, tempered) for tempered in (False, True) for size in ("full", "reduced")]
_STUDENTS = [Flavour(own.size, own.tempered, teacher) for teacher in _TEACHERS for own in _TEACHERS]
NAMES = tuple(map(str, [*_TEACHERS, *_STUDENTS]))  # in the paper's order


@dataclass
class Section:
    """What a config says of flavours, under ``flavour``.

    Attributes:
        name: one of the 20 names.
        full: the network of F.
        reduced: the network of R.
        temperature: T.
    """

    name: str
    full: Callable[[Facts], nn.Module]
    reduced: Callable[[Facts], nn.Module]
    temperature: float = 20.0


@dataclass(frozen=True)
class Expansion:
    """A flavour as the command line read it, and the config that it stands for."""

    flavour: Flavour
    config: dict[str, Any]

    def words(self, words: list[str]) -> list[str]:
        """The arguments of a subcommand, with the flavour spelt out: files and options behind it may say more."""
        return [*as_words(self.config), *words, *as_words({"flavour": None})]

    def fault(self, model: dict[str, Any]) -> str | None:
        """Where a resolved model is not what the flavour's name says; None where it is."""
        return _contradiction(self.config["model"], model, "model")

    def require(self, model: dict[str, Any]) -> None:
        """Raises ValueError where a resolved model is not what the flavour's name says."""
        if said := self.fault(model):
            raise ValueError(
                f"{self.flavour} stands for {said}: change the flavour (--flavour.name, temperature, full, reduced), "
                "or train without one."
            )


def expansion(words: list[str], parser: ArgumentParser) -> Expansion | None:
    """What the flavour among a subcommand's arguments stands for; None where they name none.

    Args:
        words: the arguments.
        parser: knows ``--config`` and ``--flavour``, a :class:`Section` or None.

    Raises:
        ValueError: for a name that is no flavour's, or a student's in no file, from which its teacher could be trained.
    """
    section = _section(words, parser)
    if section is None:
        return None
    flavour = Flavour.parse(section["name"])
    at = section["temperature"] if flavour.tempered else 1.0
    init: dict[str, Any] = {"network": section[flavour.size], "temperature": at}
    model = {"class_path": "lightning_modules.Teacher", "init_args": init}
    if flavour.teacher is not None:
        model["class_path"] = "lightning_modules.DefensiveDistillation"
        teacher = _teacher(flavour.teacher, section, words, parser)
        init |= {"temperature": section["temperature"], "student_temperature": at, "teacher": teacher}
    return Expansion(flavour, {"name": str(flavour), "model": model})


def _teacher(flavour: Flavour, section: dict[str, Any], words: list[str], parser: ArgumentParser) -> dict[str, Any]:
    """The same file, and what its section does not say: the teacher's name, and what this run changed of its recipe."""
    files = [value for option, value in _options(words) if option == "--config" and os.path.isfile(value)]
    complete = [path for path in files if "full" in (_section_in(path) or {})]
    if not complete:
        raise ValueError(
            f"The teacher {flavour} is trained by the file that names its student's flavour, and there is none: write "
            "the section flavour (name, temperature, full, reduced) to a config, and give that as --config."
        )
    own = _section(["--config", complete[0], "--flavour.name", str(flavour)], parser)
    assert own is not None
    used = [flavour.size, "temperature"] if flavour.tempered else [flavour.size]
    changed = {key: section[key] for key in used if section[key] != own[key]}
    return {"config": complete[0], "override": {"flavour": {"name": str(flavour), **changed}}}


def _section(words: list[str], parser: ArgumentParser) -> dict[str, Any] | None:
    """The section as plain values, put together from files and options in their order; None where there is none."""
    about: list[str] = []
    for option, value in _options(words):
        if option.partition(".")[0] == "--flavour":
            about += [option, value]
        elif option == "--config" and (said := _section_in(value)) is not NOTHING:
            about += as_words({"flavour": said})
    return yaml.safe_load(parser.dump(parser.parse_args(about), skip_unset=False))["flavour"] if about else None


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options and their values, whether between them is a space or an equals sign."""
    for word, following in pairwise([*words, ""]):
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            yield "--config" if option == "-c" else option, value if equals else following


def _section_in(config: str) -> Any:
    """What a config, a file or its content, says under ``flavour``; what is wrong with it, others will say."""
    try:
        content = yaml.safe_load(Path(config).read_text() if os.path.isfile(config) else config)
    except (OSError, ValueError, yaml.YAMLError):
        return NOTHING
    return content.get("flavour", NOTHING) if isinstance(content, dict) else NOTHING


def _contradiction(wanted: Any, got: Any, key: str) -> str | None:
    """Where ``got`` does not hold all that is wanted: a key, what it should be, and what it is."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        found = (_contradiction(value, got.get(name), f"{key}.{name}") for name, value in wanted.items())
        return next(filter(None, found), None)
    return None if wanted == got else f"{key.replace('init_args.', '')} {wanted}, not {got}"
