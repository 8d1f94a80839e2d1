"""What the keys of a grid file may hold: each function gives a key's value, or refuses it with a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any


def known(said: Any, keys: set[str], where: str) -> None:
    """Refuses what is no mapping, and keys that are none."""
    if not isinstance(said, Mapping):
        raise ValueError(f"{where} must map keys to values, got {said!r}.")
    if unknown := sorted(str(key) for key in said if key not in keys):
        raise ValueError(f"{where} has no {unknown[0]!r}: there are {', '.join(sorted(keys))}.")


def text(said: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    """Words, on one line."""
    value = said.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be text, got {value!r}.")
    return " ".join(value.split())


def mapping(said: Mapping[str, Any], key: str, where: str) -> Mapping[Any, Any]:
    """Names and values."""
    value = said.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {key} must map names to values, got {value!r}.")
    return value


def listed(said: Mapping[str, Any], key: str, where: str, default: Sequence[Any] = ()) -> list[Any]:
    """A list."""
    value = said.get(key, list(default))
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key} must be a list, got {value!r}.")
    return value


def axes_of(said: Mapping[str, Any], key: str, where: str) -> dict[str, list[Any]]:
    """Axes and their values."""
    axes = mapping(said, key, where)
    for axis in axes:
        if not isinstance(axis, str) or not listed(axes, axis, f"{where}, {key}"):
            raise ValueError(f"{where}: {key} maps names to the values of an axis, {axis!r} has none.")
    return dict(axes)


def seeds_of(said: Mapping[str, Any], where: str) -> list[int]:
    """Seeds; 0 where none are named."""
    seeds = listed(said, "seeds", where, [0])
    if not seeds or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise ValueError(f"{where}: seeds must be a list of integers of at least 0, got {seeds!r}.")
    return seeds


def count(said: Mapping[str, Any], key: str, where: str) -> int:
    """How many; 1 where it is not said."""
    value = said.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: {key} must be an integer of at least 1, got {value!r}.")
    return value


def excluded(said: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The combinations of axes that mean nothing."""
    found = listed(said, "except", where)
    if wrong := [each for each in found if not isinstance(each, Mapping)]:
        raise ValueError(f"{where}: except lists combinations such as {{T: 40}}, got {wrong[0]!r}.")
    return found
