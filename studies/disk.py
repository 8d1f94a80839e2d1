"""Where a study keeps what on disk, and how it is written there."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FACTS = "cell.json"  # of a finished fit: what it was, what it took, how large its network is
WANDB = "TEMPERED_STUDY_WANDB"  # the variable that is set where runs shall be logged to W&B


def partial(folder: Path) -> Path:
    """Where what becomes a folder is worked on."""
    return folder.with_name(f".{folder.name}.partial")


def lock_of(folder: Path) -> Path:
    """Held by the worker that sees to a cell."""
    return folder.with_name(f".{folder.name}.lock")


def running_lock_of(folder: Path) -> Path:
    """Held by the process of its own in which a cell's fit or test runs, which may outlive its worker."""
    return folder.with_name(f".{folder.name}.running.lock")


def log_of(folder: Path) -> Path:
    """What a cell's fit and tests print."""
    return folder.parents[1] / "logs" / f"{folder.name}.log"


def key_of(said: Any) -> str:
    """Hash of plain values, as 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]


def put(path: Path, said: Any) -> None:
    """Writes JSON, whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(said, indent=1) + "\n")
    os.replace(new, path)


def get(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ValueError: for a file that is none.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} cannot be read ({error}): move its folder away, and it is made again.") from error
