"""What a cell's configs say, file names followed, as plain values: what its identity is made of."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from studies.cells import Asked

# Said at a test, or of where a run is kept: no part of what is trained.
JUDGING = ("suite", "interpret", "shift")
ELSEWHERE = (*JUDGING, "name", "runs", "wandb", "train_teacher", "ckpt_path")


def contents(asked: Asked) -> list[Any]:
    """Configs and options in their order, with the contents of the files that they name in the files' place."""
    files = [_followed(path, Path()) for path in asked.configs]
    return [*files, *({key: _followed(value, Path())} for key, value in asked.options.items())]


def training(said: list[Any]) -> list[Any]:
    """The part of it that decides a run's weights."""
    kept = ({key: value for key, value in each.items() if key.split(".")[0] not in ELSEWHERE} for each in said)
    return [each for each in kept if each]


def class_paths(said: Any) -> Iterator[str]:
    """Every class that it names, and what looks like one: ``lightning_modules.ARD`` as the value of an option."""
    if isinstance(said, Mapping):
        for value in said.values():
            yield from class_paths(value)
    elif isinstance(said, list):
        for value in said:
            yield from class_paths(value)
    elif isinstance(said, str) and all(part.isidentifier() for part in said.split(".")) and "." in said:
        yield said


def _followed(value: Any, folder: Path) -> Any:
    """A value with the contents of YAML files, named beside the file that names them, in their place."""
    if isinstance(value, Mapping):
        return {key: _followed(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_followed(each, folder) for each in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        for path in (folder / value, Path(value)):
            if path.is_file():
                return _followed(_parsed(path.read_text()), path.parent)
    return value


@cache
def _parsed(text: str) -> Any:
    """A YAML file's content: a grid names the same few files for all its runs."""
    return yaml.safe_load(text)
