"""A study at Weights & Biases: its report as a run of its group, and a dashboard of its runs, made by code.

Its runs are logged by ``main`` as any others: ``python -m studies run NAME --wandb`` gives them a group and tags. Where
this machine is not logged in all is kept offline, and ``wandb sync`` sends it later. W&B is imported where it is used.
"""

import csv
import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.csv
from PIL import Image

from lightning_modules.run_folder import PANELS, PROJECT, wandb_mode
from studies import layout
from studies.cells import Study
from studies.disk import key_of
from studies.gather import OF_THE_FIT, Results
from studies.grid import filled, places
from studies.plan import Plan

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

ADDRESS = "dashboard.url"  # in the study's folder: where its dashboard is
ADHERENCE = "test/adherence/"
SECTIONS = {"loss": "Losses", "accuracy": "Accuracy on held-out images, clean and robust"}


def upload(plan: Plan) -> str:
    """The command that sends to W&B what was logged offline."""
    cells = shlex.quote(str(plan.folder.parent / "cells"))
    return f"wandb sync {cells}/*/wandb {cells}/*/judgings/*/wandb {shlex.quote(str(plan.folder / 'wandb'))}"


def log(results: Results, report: Path) -> None:
    """Logs a study's report as a run of its group, the same one each time, and says where it is.

    Tables and claims become W&B's tables, figures its images with their captions, the page its HTML; the summary holds
    the verdict of every claim.

    Args:
        results: the study's runs, finished or not.
        report: the report's page, with the files beside it that :func:`studies.report.write` leaves.

    Raises:
        ConnectionError: where this machine is logged in, and W&B cannot be reached or refuses.
    """
    try:
        import wandb as client
    except ImportError:
        print("W&B is not installed: the report is not logged (pip install wandb).")
        return
    study, mode = results.study, wandb_mode(client)
    try:
        run = client.init(
            project=PROJECT,
            id=f"report-{key_of([study.name, study.recipe])}",
            name=f"report of {study.called}",
            group=study.called,
            job_type="report",
            tags=[study.name, study.recipe],
            config={"experiment": "report", "title": study.title, "source": study.source},
            dir=results.plan.folder,
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            settings=client.Settings(silent=True),
        )
    except client.Error as error:
        raise ConnectionError(
            f"W&B does not take the report ({error}): with WANDB_MODE=offline it is kept here, and wandb sync sends it."
        ) from error
    with run:
        logged = {key: client.Table(columns=columns, data=rows) for key, columns, rows in _tables(report.parent)}
        run.log({"report": client.Html(str(report), inject=False), **logged, **_figures(results, client)})
        run.summary.update(_verdicts(report.parent / "claims.csv"))
    print(f"W&B: {run.url}" if mode == "online" else f"Logged to W&B offline; to send it: {upload(results.plan)}")


def workspace(study: Study, entity: str = "") -> "Workspace":
    """The study's dashboard: its losses, accuracies, attacks and adherence, each the mean over the seeds.

    Of what a test measures, those metrics have panels of their own that the study's tables, claims and figures name;
    W&B adds panels for all others.

    Args:
        study: the grid.
        entity: user or team at W&B.

    Raises:
        FileNotFoundError: where ``wandb-workspaces`` is not installed.
    """
    try:
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.reports import v2 as panels
    except ImportError as error:
        raise FileNotFoundError(
            "A dashboard is made by wandb-workspaces, which is not installed: pip install -e '.[study]'."
        ) from error
    # The fit of an experiment and each judging of it, over the seeds: two judgings may measure one metric differently.
    groups = len({(cell.name, judging) for cell in study.cells for judging in ("fit", *cell.judgings)})
    spread: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev", "max_runs_to_show": groups}

    def line(key: str) -> Any:
        return panels.LinePlot(title=key, x="epoch", y=[key], **spread)

    def bars(key: str) -> Any:
        # No adherence is shown without its level of chance.
        metrics: list[Any] = [key, f"{key}/floor"] if re.fullmatch(rf"{ADHERENCE}[^/]+/[^/]+", key) else [key]
        return panels.BarPlot(title=key, metrics=metrics, max_bars_to_show=len(metrics) * groups, **spread)

    measured = measures(study)
    sections = {
        **{SECTIONS[panel]: [line(key) for key in keys] for panel, keys in PANELS.items()},
        "Attacks and other measures at test": [bars(key) for key in measured if not key.startswith(ADHERENCE)],
        "Adherence to the teacher": [bars(key) for key in measured if key.startswith(ADHERENCE)],
    }
    return ws.Workspace(
        entity=entity,
        project=PROJECT,
        name=f"{study.title} ({study.recipe})",
        sections=[ws.Section(name=name, panels=made, is_open=True) for name, made in sections.items() if made],
        settings=ws.WorkspaceSettings(max_runs=groups),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == study.called],
            groupby=[ws.Config("experiment"), ws.Metric("JobType")],
            order=[ws.Ordering(ws.Metric("Name"))],
        ),
        auto_generate_panels=True,
    )


def publish(plan: Plan) -> str:
    """Saves the study's dashboard at W&B, in the place of an earlier one, and returns its address.

    Raises:
        FileNotFoundError: where ``wandb-workspaces`` is not installed.
        ConnectionError: where this machine is not logged in, or W&B does not take it.
    """
    made = workspace(plan.study)
    import wandb as client
    from wandb_workspaces import workspaces as ws

    if wandb_mode(client) != "online":
        raise ConnectionError(
            f"The dashboard is kept by W&B, where this machine is not logged in: run wandb login, then {upload(plan)} "
            "for what was logged offline, then this command again."
        )
    address = plan.folder / ADDRESS
    try:
        if address.exists():
            earlier = ws.Workspace.from_url(address.read_text().strip())
            earlier.sections, earlier.settings = made.sections, made.settings
            earlier.runset_settings = made.runset_settings
            made = earlier
        else:
            made.entity = client.Api().default_entity or ""
        made.save()
    except Exception as error:  # of W&B's client and of its server, which have no class in common
        raise ConnectionError(
            f"W&B did not take the dashboard ({error}). Its project {PROJECT} is there once a run has been sent: "
            f"{upload(plan)}; a dashboard that was removed there is made anew once {address} is removed."
        ) from error
    address.parent.mkdir(parents=True, exist_ok=True)
    address.write_text(f"{made.url}\n")
    return str(made.url)


def measures(study: Study) -> list[str]:
    """The keys at W&B of what the study's tables, claims and figures show of its tests."""
    columns = [(column.metric, column.model) for table in layout.tables(study) for column in table.columns]
    claimed = [(claim.metric, "own") for claim in layout.claims(study)]
    drawn = [found for said in study.figures for found in _drawn(said, study)]
    prefix = {"own": "test", "teacher": "test/teacher"}
    keys = [f"{prefix[model]}/{metric}" for metric, model in [*columns, *claimed, *drawn] if metric not in OF_THE_FIT]
    return list(dict.fromkeys(keys))


def _drawn(said: Mapping[str, Any], study: Study) -> Iterator[tuple[str, str]]:
    """The metrics of a figure, and whose they are."""
    metrics = _list(said.get("metric", []))
    if said.get("kind") == "adherence":
        measure = said.get("measure", "absolute cosine")
        metrics = [f"adherence/{method}/{measure}" for method in _list(said.get("method", "Saliency"))]
    axes = {**study.axes, **(said.get("over") or {})}
    for template in metrics:
        for place in places(template, axes):
            yield str(filled(template, place, study.name)), said.get("model", "own")


def _list(said: Any) -> Sequence[str]:
    return said if isinstance(said, list) else [said]


def _tables(folder: Path) -> Iterator[tuple[str, list[Any], list[tuple[Any, ...]]]]:
    """Key, columns and rows of the claims and of each table that the report names; an earlier one may have others."""
    named = (folder / "report.md").read_text()
    files = [path for path in sorted(folder.glob("tables/*.csv")) if f"tables/{path.name}" in named]
    for path in [folder / "claims.csv", *files]:
        table = pyarrow.csv.read_csv(path)
        rows = list(zip(*table.to_pydict().values(), strict=True))
        yield path.relative_to(folder).with_suffix("").as_posix(), table.column_names, rows


def _figures(results: Results, client: Any) -> dict[str, Any]:
    """The report's figures as W&B's images, by key."""
    if not results.study.figures:
        return {}
    from studies.drawings import draw  # imports what computes

    drawn = [each for said in results.study.figures for each in draw(results, said)]
    found = {}
    for number, each in enumerate(drawn, 1):
        pixels = io.BytesIO()
        each.figure.savefig(pixels, format="png", dpi=150, facecolor="white")
        words = re.sub(r"[^a-z0-9]+", "-", each.title.lower()).strip("-")
        caption = ". ".join(filter(None, [each.title, each.caption]))
        found[f"figures/{number:02d}-{words}".strip("-")] = client.Image(Image.open(pixels), caption=caption)
    return found


def _verdicts(path: Path) -> dict[str, str]:
    """What came of each claim, by its place in the report."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"claims/{number:02d}": f"{row['verdict']}: {row['claim']}" for number, row in enumerate(rows, 1)}
