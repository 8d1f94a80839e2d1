"""What a cell's configs say, file names followed, as plain values: what its identity is made of."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from studies.cells import Asked

# Said at a test, or of where a run is kept: no part of what is trained.
JUDGING = ("suite", "interpret", "shift")
ELSEWHERE = (*JUDGING, "name", "runs", "wandb", "train_teacher", "ckpt_path")


def contents(asked: Asked) -> list[Any]:
    """Configs and options in their order, with the contents of the files that they name in the files' place.

    Raises:
        ValueError: for a config that is no YAML, no mapping, or names itself.
    """
    files = [_read(Path(path)) for path in asked.configs]
    for path, said in zip(asked.configs, files, strict=True):
        if not isinstance(said, Mapping):
            raise ValueError(f"{path} is no config: it must map keys to values, got {said!r}.")
    return [*files, *({key: _followed(value, Path())} for key, value in asked.options.items())]


def judging(asked: Asked) -> list[str]:
    """The part of it that says how a run is tested, as arguments of ``test``, with the files' contents in them."""
    words: list[str] = []
    for each in judged(contents(asked)):
        for key, value in each.items():
            said = "." not in key  # of a config, or of an option
            words += ["--config", yaml.safe_dump({key: value})] if said else Asked(options={key: value}).words()
    return words


def judged(said: list[Any]) -> list[Any]:
    """The part of some contents that says how a run is tested."""
    return _kept(said, lambda key: key in JUDGING)


def training(said: list[Any]) -> list[Any]:
    """The part of some contents that decides a run's weights."""
    return _kept(said, lambda key: key not in ELSEWHERE)


def _kept(said: list[Any], wanted: Callable[[str], bool]) -> list[Any]:
    kept = ({key: value for key, value in each.items() if wanted(key.split(".")[0])} for each in said)
    return [each for each in kept if each]


def class_paths(said: Any) -> Iterator[str]:
    """Every class that it names, and what looks like one: ``lightning_modules.ARD``, or ``ARD``, of an option."""
    if isinstance(said, Mapping):
        for value in said.values():
            yield from class_paths(value)
    elif isinstance(said, list):
        for value in said:
            yield from class_paths(value)
    elif isinstance(said, str) and all(part.isidentifier() for part in said.split(".")):
        yield said


def _followed(value: Any, folder: Path, above: tuple[Path, ...] = ()) -> Any:
    """A value with the contents of YAML files, named beside the file that names them, in their place."""
    if isinstance(value, Mapping):
        return {key: _followed(each, folder, above) for key, each in value.items()}
    if isinstance(value, list):
        return [_followed(each, folder, above) for each in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        for path in (folder / value, Path(value)):
            if path.is_file():
                return _read(path, above)
    return value


def _read(path: Path, above: tuple[Path, ...] = ()) -> Any:
    if path in above:
        raise ValueError(f"{path} names itself, by way of {', '.join(map(str, above))}.")
    try:
        said = _parsed(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    return _followed(said, path.parent, (*above, path))


@cache
def _parsed(text: str) -> Any:
    """A YAML file's content: a grid names the same few files for all its runs."""
    return yaml.safe_load(text)
