"""Reads a grid of runs from a short YAML file and spells out its cells: which configs, with which options and seed.

A grid file has these keys; whatever it names are ordinary configs and options of the command line::

    title: what is studied
    source: the paper, its tables and figures
    seeds: [0, 1, 2]
    checkpoint: last          # whose figures: best (the default) or last
    threads: 1                # of every process
    group: 16                 # how many runs share a process (default 1)
    axes: {T: [10, 40]}       # values that run names and options refer to as {T}
    runs:
      - name: "KD at {T}"     # a template; it is crossed over the axes that it names
        config: configs/kd_mnist.yaml          # or a list of them
        set: {model.temperature: "{T}"}        # options behind them
        teacher: teacher                       # a run's name; its weights become --model.teacher.checkpoint
        over: {width: [1, 2]}                  # axes of this entry alone
        except: [{T: 40, width: 2}]            # combinations that mean nothing
        seeds: [0]                             # fewer than the study's; its students share what there is
        judge: [attacks]                       # by default every one that the grid has
    judge:
      attacks: {set: {suite: configs/suite/digits.yaml, suite.images: 500}}
    recipes:                  # paper (as above), short, quick: what they say otherwise
      quick:
        title: what this is, where that is something else
        note: what stands for what; the report says so below its title
        seeds: [0]
        axes: {T: [10]}
        config: configs/studies/quick.yaml     # behind every run's
        set: {trainer.max_epochs: 5}
        only: ["KD*"]                          # leaves out runs that match none of these
        runs: {"KD*": {config: ..., set: ...}} # behind those whose template matches
        judge: {attacks: {set: {suite.images: 100}}}
    tables, claims, figures:  # what the report shows; see studies.layout

Nothing here trains.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from studies.cells import Asked, Cell, Study
from studies.shapes import axes_of, count, excluded, known, listed, mapping, seeds_of, text

RECIPES = ("paper", "short", "quick")
FOLDER = Path("configs/studies")
KEYS = {
    *("title", "source", "seeds", "checkpoint", "threads", "group", "axes", "runs", "judge", "recipes"),
    *("tables", "claims", "figures"),
}
RUN = {"name", "config", "set", "teacher", "over", "except", "seeds", "judge"}
RECIPE = {
    *("title", "note", "seeds", "axes", "config", "set", "only", "runs", "judge", "checkpoint", "threads", "group"),
    *("tables", "claims", "figures"),
}
FIELD = re.compile(r"\{(\w+)\}")


def find(name: str) -> Path:
    """The file of a study: a path, or the name of one in ``configs/studies``.

    Raises:
        FileNotFoundError: where there is none, with the names that there are.
    """
    for path in (Path(name), FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml"))) or "none here"
    raise FileNotFoundError(f"There is no study {name}: name a grid file, or one of those in {FOLDER} ({known}).")


def read(path: Path, recipe: str = "paper") -> Study:
    """The study in a file, under a recipe.

    Raises:
        ValueError: for a file that is no grid, a key that is none, two runs of one name, a teacher that is no run, or
            a config that does not exist.
    """
    try:
        said = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("runs"), list) or not said["runs"]:
        raise ValueError(f"{path} is no study: it needs a list under runs, each entry with a name and a config.")
    known(said, KEYS, f"{path}")
    recipes = said.get("recipes") or {}
    known(recipes, set(RECIPES), f"{path}, recipes")
    if recipe not in RECIPES or (recipe != "paper" and recipe not in recipes):
        raise ValueError(f"{path} has no recipe {recipe}: there are {', '.join(['paper', *recipes])}.")
    own = recipes.get(recipe) or {}
    known(own, RECIPE, f"{path}, recipe {recipe}")
    merged = {**said, **{key: own[key] for key in own if key not in ("axes", "judge", "runs", "config", "set")}}
    axes = {**axes_of(said, "axes", f"{path}"), **axes_of(own, "axes", f"{path}, recipe {recipe}")}
    if strange := [axis for axis in axes if axis not in (said.get("axes") or {})]:
        raise ValueError(f"{path}, recipe {recipe}: the grid has no axis {strange[0]!r}.")
    judge = _judgings(mapping(said, "judge", f"{path}"), mapping(own, "judge", f"{path}, recipe {recipe}"), path)
    for entry in said["runs"]:
        known(entry, RUN, f"{path}, a run")
        if not isinstance(entry.get("name"), str) or not entry["name"]:
            raise ValueError(f"{path}: every run needs a name, {dict(entry)} has none.")
    only = listed(own, "only", f"{path}, recipe {recipe}", ["*"])
    changed = mapping(own, "runs", f"{path}, recipe {recipe}")
    for pattern in (*only, *changed):
        if not any(fnmatchcase(entry["name"], str(pattern)) for entry in said["runs"]):
            raise ValueError(f"{path}, recipe {recipe}: no run is called {pattern!r}.")
    for pattern, more in changed.items():
        known(more, {"config", "set"}, f"{path}, recipe {recipe}, runs {pattern!r}")
    seeds = seeds_of(merged, f"{path}")
    cells = tuple(
        cell
        for entry in said["runs"]
        if any(fnmatchcase(entry["name"], str(pattern)) for pattern in only)
        for cell in _cells(entry, own, axes, judge, seeds, path)
    )
    checkpoint = merged.get("checkpoint", "best")
    if checkpoint not in ("best", "last"):
        raise ValueError(f"{path}: checkpoint is best or last, got {checkpoint!r}.")
    study = Study(
        name=path.stem,
        recipe=recipe,
        title=text(merged, "title", f"{path}", path.stem),
        note=text(merged, "note", f"{path}"),
        source=text(merged, "source", f"{path}"),
        checkpoint=checkpoint,
        threads=count(merged, "threads", f"{path}"),
        group=count(merged, "group", f"{path}"),
        axes=axes,
        cells=cells,
        tables=tuple(listed(merged, "tables", f"{path}")),
        claims=tuple(listed(merged, "claims", f"{path}")),
        figures=tuple(listed(merged, "figures", f"{path}")),
    )
    _check(study, path)
    return study


def filled(value: Any, axes: Mapping[str, Any], where: str) -> Any:
    """A template with the values of axes in the place of ``{axis}``; a template that is nothing else becomes the value.

    Raises:
        ValueError: for an axis that is none.
    """
    if isinstance(value, Mapping):
        return {filled(key, axes, where): filled(each, axes, where) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, axes, where) for each in value]
    if not isinstance(value, str):
        return value
    unknown = [name for name in FIELD.findall(value) if name not in axes]
    if unknown:
        raise ValueError(f"{where}: {value!r} names an axis {unknown[0]}, there are {', '.join(axes) or 'none'}.")
    whole = FIELD.fullmatch(value)
    return axes[whole[1]] if whole else FIELD.sub(lambda found: str(axes[found[1]]), value)


def places(
    template: str, axes: Mapping[str, Sequence[Any]], without: Sequence[Mapping[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """All combinations of the axes that a template names, without those that are excluded."""
    named = [name for name in dict.fromkeys(FIELD.findall(template)) if name in axes]
    for values in product(*(axes[name] for name in named)):
        place = dict(zip(named, values, strict=True))
        if not any(all(place.get(key) == value for key, value in each.items()) for each in without):
            yield place


def _cells(
    entry: Mapping[str, Any],
    recipe: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    judge: Mapping[str, Asked],
    seeds: Sequence[int],
    path: Path,
) -> Iterator[Cell]:
    """An entry's runs, each with each of its seeds."""
    template = entry["name"]
    where = f"{path}, run {template!r}"
    asked = _asked(entry, where).then(_asked(recipe, where))
    for pattern, more in (recipe.get("runs") or {}).items():
        if fnmatchcase(template, pattern):
            asked = asked.then(_asked(more, where))
    wanted = listed(entry, "judge", where, list(judge))
    if missing := [name for name in wanted if name not in list(judge)]:
        raise ValueError(f"{where} is judged by {missing[0]!r}, the grid has {', '.join(judge) or 'none'}.")
    named = seeds_of(entry, where) if "seeds" in entry else seeds
    own = [seed for seed in seeds if seed in named] or named
    without = excluded(entry, where)
    for place in places(template, {**axes, **axes_of(entry, "over", where)}, without):
        for seed in own:
            yield Cell(
                name=str(filled(template, place, where)),
                seed=seed,
                axes=place,
                asked=Asked(
                    tuple(filled(list(asked.configs), place, where)), filled(dict(asked.options), place, where)
                ),
                teacher=entry.get("teacher") and str(filled(entry["teacher"], place, where)),
                judgings={name: judge[name] for name in wanted},
            )


def _judgings(said: Mapping[str, Any], recipe: Mapping[str, Any], path: Path) -> dict[str, Asked]:
    known(recipe, set(said), f"{path}, judge of the recipe")
    for name in said:
        if not isinstance(name, str) or not re.fullmatch(r"[\w .+-]{1,60}", name):
            raise ValueError(f"{path}: the judging {name!r} names a folder: letters, digits and '_ .+-' only.")
    for name, entry in [*said.items(), *recipe.items()]:
        known(entry or {}, {"config", "set"}, f"{path}, judge {name}")
    return {
        name: _asked(entry or {}, f"{path}, judge {name}").then(_asked(recipe.get(name) or {}, f"{path}, judge {name}"))
        for name, entry in said.items()
    }


def _asked(entry: Mapping[str, Any], where: str) -> Asked:
    files = entry.get("config") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{where}: config names a file, or a list of them, got {entry['config']!r}.")
    options = mapping(entry, "set", where)
    if wrong := [key for key in options if not isinstance(key, str)]:
        raise ValueError(f"{where}: set maps options to values, {wrong[0]!r} is no option.")
    return Asked(tuple(files), options)


def _check(study: Study, path: Path) -> None:
    """Refuses what could not be run, or would be run in another's place."""
    names = [cell.id for cell in study.cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two runs {twice[0]!r}; every run needs a name, and a folder, of its own.")
    runs = {cell.name for cell in study.cells}
    for cell in study.cells:
        if cell.teacher is not None and cell.teacher not in runs:
            raise ValueError(f"{path}: {cell.name!r} has the teacher {cell.teacher!r}, which is no run of the grid.")
        if not cell.asked.configs:
            raise ValueError(f"{path}: {cell.name!r} names no config.")
        for file in (*cell.asked.configs, *(file for asked in cell.judgings.values() for file in asked.configs)):
            if not Path(file).is_file():
                raise FileNotFoundError(f"{path}: {cell.name!r} needs the config {file}, seen from {Path.cwd()}.")
        if "flavour.name" in cell.asked.options:
            _flavour(str(cell.asked.options["flavour.name"]), f"{path}, run {cell.name!r}")
    if not study.cells:
        raise ValueError(f"{path}: the recipe {study.recipe} leaves no run.")


def _flavour(name: str, where: str) -> None:
    from lightning_modules.flavours import Flavour  # seconds of imports, for the grids that need them

    try:
        Flavour.parse(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
