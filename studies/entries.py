"""Entries of a grid file that the report is made from: their keys, and the places on the axes that they stand for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from studies.cells import Study
from studies.grid import filled, places
from studies.shapes import axes_of, excluded, known, mapping


@dataclass(frozen=True)
class Scope:
    """An entry of a grid's report, and where on the axes it is being read.

    Attributes:
        study: whose it is.
        where: it stands, for what is refused.
        axes: of the study and of the entry's own.
        place: the values of those axes that have one already.
    """

    study: Study
    where: str
    axes: Mapping[str, Sequence[Any]]
    place: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, said: Any, keys: set[str], needed: Sequence[str], where: str) -> "Scope":
        """The scope of an entry within this one, whose keys are checked."""
        where = f"{self.where}{where}"
        known(said, keys, where)
        if missing := [key for key in needed if said.get(key) in (None, "", [])]:
            raise ValueError(f"{where} needs {missing[0]!r}.")
        mapping(said, "published", where)
        excluded(said, where)
        if said.get("judge") is not None and said["judge"] not in self.judgings:
            raise ValueError(
                f"{where}: there is no judging {said['judge']!r}, but {', '.join(self.judgings) or 'none'}."
            )
        return replace(self, where=where, axes={**self.axes, **axes_of(said, "over", where)})

    def places(self, said: Mapping[str, Any], *keys: str) -> Iterator["Scope"]:
        """This scope at every place of those axes that the templates under some keys name and that are still free."""
        free = {axis: values for axis, values in self.axes.items() if axis not in self.place}
        for place in places(" ".join(str(said.get(key, "")) for key in keys), free, excluded(said, self.where)):
            yield replace(self, place={**self.place, **place})

    def filled(self, value: Any) -> Any:
        return filled(value, self.place, self.where)

    @property
    def judgings(self) -> list[str]:
        return list(dict.fromkeys(name for cell in self.study.cells for name in cell.judgings))

    def run(self, template: str) -> str | None:
        """The run that a template names here; None where the grid has none."""
        name = str(self.filled(template))
        return name if any(cell.name == name for cell in self.study.cells) else None

    def refuse_run(self, template: str) -> None:
        """Refuses a run that the grid does not have; a recipe may leave out what the paper's has."""
        if self.study.recipe == "paper":
            names = ", ".join(dict.fromkeys(cell.name for cell in self.study.cells))
            raise ValueError(f"{self.where}: the grid has no run {template!r}; it has {names}.")
