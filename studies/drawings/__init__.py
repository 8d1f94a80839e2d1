"""The figures of a study's report: an entry under ``figures`` of a grid file names a kind and its arguments.

Every kind takes these::

    kind: lines                 # one of those below
    title: "Figure 3: T = {T}"  # above it; {T} in it makes a figure for each T
    note: one sentence          # behind its caption
    over: {T: [10, 40]}         # axes of this entry, in the place of the study's of the same name or beside them
    except: [{T: 40}]           # combinations that mean nothing; those that are no runs of the grid are left out too
    runs:                       # templates, each crossed over the axes that it names, with over and except of its own
      - "{student}_from_{at1}, T = {T}"
      - {run: "KD, noise {s}", label: "distilled"}            # what the figure calls it; by default the run's name
      - {run: "KD, noise {s}", published: {PGD-20: {0.05: 33.85}}}   # of lines: the paper's points, in the table's unit

and of its own (without a default: it has to be given)::

    kind          argument   default       what it is
    (all)         judge      the first     the judging that is meant, of those that know it; decisions, layers and
                                           losses, which are of no judging, take none
    lines                                  a metric over a numeric axis, a line per run, mean and sd over the seeds
                  x                        the axis; a run that does not name it becomes a level line
                  metric                   a metric, or a list of them: a panel each
                  model      own           own or teacher
                  axis       x             what is written at the axis
    bars                                   metrics of runs side by side, mean and sd over the seeds
                  metric                   a metric, or a list of them: a bar each
                  model      own           own or teacher
    security                               security curves: accuracy over the radius or the steps of an attack
                  curve                    its name, as the suite's curves have it: "PGD-20 over eps", "PGD over steps"
                  model      own           own or teacher
    decisions                              what networks decide in the plane, classes as colours
                  columns    5             how many panels go across, in the runs' order; or the axis that goes across,
                                           with a row for each other place of the runs
                  rounded    false         the predicted class alone, without its probability
                  points     150           how many training points are drawn; 0 for none
                  eps        none          l-inf boxes of this radius around the points, those of two classes in black
    attributions                           one test image under all runs: map, predicted class and its probability
                  method                   a class of interpret: Saliency, IntegratedGradients, GradCAM, GuidedGradCAM,
                                           SmoothGrad; or a list: a figure each, of one run all in one
                  image      0             its place in the test set
                  attack     none          an attack, {class_path: attacks.FGSM}: its weak and strong version on the
                                           image are drawn too, under the threat model of the runs' suite
    adherence                              how alike the maps of student and teacher are, with the floor of chance
                  method     Saliency      as the records call it: "Integrated Gradients"; or a list: a panel each
                  measure    absolute cosine    likewise
    sensitivity                            shares of images by gradient amplitude, in the paper's bins
                  model      own           own or teacher
                  images     none          computed now, from so many test images; by default the judging's records
    layers                                 mean absolute gradient of every layer of every stage
                  images     100           how many test images it is computed from
    corruptions                            accuracy by corruption and severity, and the difference to the teacher
                  source     the first     as the records call it: CIFAR-10-C, CIFAR-C-like
                  severities each          or mean: one figure, a row for each run
    losses                                 losses and accuracies by epoch, a thin line for each seed
    pictures                               what a run's judging has drawn already, of its first seed that has it
                  files                    a pattern: "figures/interpretation/models-*.png"

The threat model of a drawn attack is that of the judging. Runs that are not finished are left out, and the caption says
so; runs that the recipe does not have are no part of its figures. Weights are those that the study judges, of the first
seed that has been trained.
"""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

from studies.cells import Study
from studies.drawings import common, style
from studies.drawings.adherence import adherence
from studies.drawings.attributions import attributions
from studies.drawings.bars import bars
from studies.drawings.common import Drawn, Entry
from studies.drawings.corruptions import corruptions
from studies.drawings.decisions import decisions
from studies.drawings.gradients import layers, sensitivity
from studies.drawings.lines import lines, security
from studies.drawings.losses import losses
from studies.drawings.pictures import pictures
from studies.entries import Scope
from studies.gather import Results

__all__ = ["KINDS", "Drawn", "check", "draw"]

Kind = Callable[..., list[Drawn]]
KINDS: Mapping[str, Kind] = {
    kind.__name__: kind
    for kind in (
        lines,
        bars,
        security,
        decisions,
        attributions,
        adherence,
        sensitivity,
        layers,
        corruptions,
        losses,
        pictures,
    )
}
COMMON = ("kind", "title", "note", "over", "except", "runs")


def check(study: Study) -> None:
    """Refuses figures that could never be drawn; see :func:`draw`."""
    for said in study.figures:
        _read(study, said)


def draw(results: Results, said: Mapping[str, Any]) -> list[Drawn]:
    """Draws what an entry under ``figures`` asks for: a figure for each place of the axes that its title names.

    A figure that is too large for a page comes in parts.

    Args:
        results: the study's runs, finished or not.
        said: the entry.

    Raises:
        ValueError: for a kind, an argument or a run that is none, or one that is missing.
    """
    kind, figures = _read(results.study, said)
    note = str(said.get("note", ""))
    return [
        Drawn(each.figure, each.alt, style.sentences(each.caption, note), title)
        for title, entries, arguments in figures
        for each in kind(results, entries, **arguments)
    ]


def _read(study: Study, said: Any) -> tuple[Kind, list[tuple[str, list[Entry], dict[str, Any]]]]:
    """The kind of a figure, and the title, runs and own arguments of each that the entry stands for."""
    named = said.get("kind") if isinstance(said, Mapping) else said
    kind = KINDS.get(str(named))
    if kind is None or not isinstance(said, Mapping):
        raise ValueError(f"{study.name}: a figure is of no kind {named!r}: there are {', '.join(KINDS)}.")
    own = {name: each for name, each in signature(kind).parameters.items() if each.kind is Parameter.KEYWORD_ONLY}
    needed = ["runs", *(name for name, each in own.items() if each.default is Parameter.empty)]
    title = str(said.get("title", ""))
    root = Scope(study, study.name, study.axes)
    scope = root.entry(said, {*COMMON, *own}, needed, f", figure {title or named!r}")
    found = []
    for at in scope.places(said, "title"):
        entries = common.entries(at, said["runs"])
        if entries:
            found.append((str(at.filled(title)), entries, {key: at.filled(said[key]) for key in said if key in own}))
    return kind, found
