"""A study at W&B: what its runs and its report leave offline, and their dashboard. No server is asked for anything."""

import csv
import json
import sys
from itertools import chain
from types import SimpleNamespace

import pytest
from main_helpers import QUIET, student_config, write
from report_helpers import grid, whole
from wandb_helpers import Logged

from main import main
from studies import board
from studies.report import write as write_report

TABLE = {
    "title": "Table 1: robustness",
    "columns": [
        {"label": "clean", "metric": "clean"},
        {"label": "at {T}", "metric": "PGD-{T}"},
        {"label": "its teacher", "metric": "clean", "model": "teacher"},
        {"label": "size", "metric": "parameters"},
    ],
    "rows": [{"label": "plain", "run": "plain"}, {"label": "teacher", "run": "teacher"}],
}
CLAIMS = [
    {"says": "Distilled is higher.", "one": "KD at 40", "other": "plain", "metric": "PGD-20", "claimed": "higher"},
    {"says": "Distilled is lower.", "one": "KD at 40", "other": "plain", "metric": "PGD-20", "claimed": "lower"},
]
BARS = {"kind": "bars", "title": "Figure 1", "metric": ["PGD-20", "clean"], "runs": ["plain", "KD at {T}"]}
MAPS = {"kind": "adherence", "title": "Figure 2", "method": ["Saliency", "Grad-CAM"], "runs": ["KD at {T}"]}


# The dashboard


def panels(workspace):
    """The sections of a dashboard, as W&B is sent them: name and the metrics of every panel."""
    sections = workspace._spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {each["name"]: [panel["config"]["metrics"] for panel in each["panels"]] for each in sections}


def test_what_tables_claims_and_figures_show_is_found_at_wandb_by_its_key(tmp_path):
    study = grid(tmp_path, tables=[TABLE], claims=CLAIMS, figures=[BARS, MAPS]).study
    assert board.measures(study) == [
        *("test/clean", "test/PGD-10", "test/PGD-40", "test/teacher/clean", "test/PGD-20"),
        *("test/adherence/Saliency/absolute cosine", "test/adherence/Grad-CAM/absolute cosine"),
    ]


def test_the_dashboard_shows_the_studys_runs_alone_and_averages_seeds_but_not_judgings(tmp_path):
    pytest.importorskip("wandb_workspaces")
    study = grid(tmp_path, tables=[TABLE], figures=[MAPS], judge={"attacks": {}, "maps": {}}).study
    made = board.workspace(study, "somebody")
    assert panels(made) == {
        "Losses": [["train/loss"], ["val/loss"]],
        "Accuracy on held-out images, clean and robust": [["val/acc"], ["val/robust_acc"]],
        "Attacks and other measures at test": [
            ["test/clean"],
            ["test/PGD-10"],
            ["test/PGD-40"],
            ["test/teacher/clean"],
        ],
        "Adherence to the teacher": [
            [f"test/adherence/{method}/absolute cosine", f"test/adherence/{method}/absolute cosine/floor"]
            for method in ("Saliency", "Grad-CAM")
        ],
    }
    assert (made.entity, made.project, made.name) == ("somebody", "tempered", "A study (paper)")
    (runs,) = made._spec["spec"]["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "made-paper")
    groups = [(each["section"], each["name"]) for each in runs["grouping"]]
    assert groups == [("config", "experiment.value"), ("run", "jobType")]
    # Four experiments, each with its fit and two tests.
    assert made._spec["spec"]["section"]["settings"]["maxRuns"] == 12


def test_a_study_that_names_no_metric_has_no_empty_section(tmp_path):
    pytest.importorskip("wandb_workspaces")
    assert list(panels(board.workspace(grid(tmp_path).study))) == list(board.SECTIONS.values())


@pytest.fixture
def server(monkeypatch):
    """W&B's server, as far as dashboards go: what it holds, by the dashboard's name."""
    pytest.importorskip("wandb_workspaces")
    import wandb
    from wandb_workspaces.workspaces import interface, internal

    held = {}

    def execute(api, query, variables):
        if "upsertView" in query:
            id = variables.get("id") or f"id{len(held)}"
            held[variables["name"]] = {"id": id, "displayName": variables["displayName"], "spec": variables["spec"]}
            return {"upsertView": {"view": {"id": id, "name": variables["name"]}}}
        found = [view for name, view in held.items() if name.strip("nw-v") == variables["viewName"].strip("nw-v")]
        return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity="somebody"))
    monkeypatch.setattr(internal, "execute_graphql", execute)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    return held


def test_a_dashboard_takes_the_place_of_the_earlier_one(server, tmp_path):
    address = board.publish(grid(tmp_path))
    assert address.startswith("https://wandb.example/somebody/tempered?nw=")
    assert board.publish(grid(tmp_path, tables=[TABLE])) == address
    ((_, view),) = server.items()
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [len(section["panels"]) for section in sections] == [2, 2, 4]


def test_a_dashboard_that_was_removed_at_wandb_is_told(server, tmp_path):
    board.publish(grid(tmp_path))
    server.clear()
    with pytest.raises(ConnectionError, match=r"is made anew once .*dashboard\.url is removed"):
        board.publish(grid(tmp_path))


def test_without_a_login_it_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ConnectionError) as error:
        board.publish(grid(tmp_path))
    cells = f"{tmp_path}/runs/studies/cells"
    sync = f"wandb sync {cells}/*/wandb {cells}/*/judgings/*/wandb {tmp_path}/runs/studies/made-paper/wandb"
    assert f"run wandb login, then {sync} for what was logged offline, then this command again." in str(error.value)


def test_a_report_that_wandb_does_not_take_is_told(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConnectionError, match=r"\(no route to host\): with WANDB_MODE=offline it is kept here"):
        board.log(whole(tmp_path), tmp_path / "report.html")


def test_what_is_not_installed_is_told(tmp_path, monkeypatch, capsys):
    for name in ("wandb", "wandb_workspaces", "wandb_workspaces.workspaces"):
        monkeypatch.setitem(sys.modules, name, None)
    board.log(whole(tmp_path), tmp_path / "report.html")
    assert capsys.readouterr().out == "W&B is not installed: the report is not logged (pip install wandb).\n"
    with pytest.raises(
        FileNotFoundError, match=r"wandb-workspaces, which is not installed: pip install -e '\.\[study\]'"
    ):
        board.publish(grid(tmp_path))


# What lies offline


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """W&B as a process first meets it, for it reads its variables once; and the runs that it left in a folder."""
    import wandb

    def logged(folder):
        wandb.teardown()  # what ends a run does not wait for its last bytes
        return [Logged(each) for each in sorted((folder / "wandb").glob("offline-run-*"))]

    wandb.teardown()
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield logged
    wandb.teardown()


@pytest.mark.slow
def test_the_report_is_one_run_of_the_studys_group(offline, tmp_path, capsys):
    shown = {**TABLE, "columns": [{"label": "PGD-20", "metric": "PGD-20"}]}
    results = whole(tmp_path, tables=[shown], claims=CLAIMS, figures=[{**BARS, "note": "A note."}])
    page = write_report(results, "python -m studies run made", results.plan.folder / "report")
    (page.parent / "tables" / "09-of-an-earlier-grid.csv").write_text("row\nstale\n")
    for _ in range(2):
        board.log(results, page)
        assert capsys.readouterr().out == f"Logged to W&B offline; to send it: {board.upload(results.plan)}\n"
    first, second = offline(results.plan.folder)
    assert first.run.run_id == second.run.run_id

    run = second
    assert run.described == ("report of made-paper", "made-paper", "report", ["made", "paper"], "tempered")
    verdicts = [run.summary[f"claims/0{number}"] for number in (1, 2)]
    assert verdicts == ["holds: Distilled is higher.", "does not hold: Distilled is lower."]
    assert run.file("report").read_text() == page.read_text()
    assert run.file("figures/01-figure-1").read_bytes().startswith(b"\x89PNG")
    (caption,) = run.history["figures/01-figure-1/caption"]
    assert caption.startswith("Figure 1. ")
    assert "A note." in caption

    assert [key for key in run.history if key.startswith("tables/09")] == []
    (table,) = (page.parent / "tables").glob("01-*.csv")
    for key, path in {f"tables/{table.stem}": table, "claims": page.parent / "claims.csv"}.items():
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
        logged = json.loads(run.file(key).read_text())
        assert logged["columns"] == head
        assert len(logged["data"]) == len(rows) > 0
        for ours, theirs in zip(logged["data"], rows, strict=True):
            assert all(same(cell, text) for cell, text in zip(ours, theirs, strict=True))


def same(cell, text):
    """Whether a cell of W&B's table says what one of a CSV file does."""
    return float(text) == cell if isinstance(cell, int | float) else text == (cell or "")


@pytest.mark.slow
def test_the_dashboard_names_what_runs_log_under_their_own_name_and_kind(
    offline, at_root, tmp_path, monkeypatch, tiny_teacher
):
    """A fit and a test in one process, as a study's worker runs them."""
    columns = [{"label": name, "metric": name} for name in ("clean", "FGSM", "worst case")]
    columns.append({"label": "its teacher", "metric": "clean", "model": "teacher"})
    figures = [{"kind": "adherence", "title": "Figure 1", "runs": ["plain"]}]
    study = grid(tmp_path, tables=[{**TABLE, "columns": columns}], figures=figures).study
    student = student_config({"checkpoint": str(tiny_teacher / "checkpoints" / "best.ckpt")}, max_epochs=1)
    config = write(tmp_path / "student.yaml", student | {"interpret": {"images": 8}, "seed_everything": 3})
    monkeypatch.setenv("WANDB_RUN_GROUP", study.called)
    monkeypatch.setenv("WANDB_TAGS", "made,paper")

    def run(name, kind, *words):
        monkeypatch.setenv("WANDB_NAME", name)
        monkeypatch.setenv("WANDB_JOB_TYPE", kind)
        return main([*map(str, words), "--runs", str(tmp_path / "cli"), "--wandb", "true", *QUIET[2:]]).folder

    fit = run("KD at 8/255 #3", "fit", "fit", "--config", config, "--trainer.limit_test_batches", "0")
    weights = ["--ckpt_path", fit / "checkpoints" / "best.ckpt", "--trainer.limit_test_batches", "1.0"]
    test = run("KD at 8/255 #3, attacks", "test attacks", "test", "--config", fit / "config.yaml", *weights)
    ((fitted,), (tested,)) = offline(fit), offline(test)
    assert fitted.described == ("KD at 8/255 #3", "made-paper", "fit", ["made", "paper"], "tempered")
    assert tested.described == ("KD at 8/255 #3, attacks", "made-paper", "test attacks", ["made", "paper"], "tempered")
    for each in (fitted, tested):
        assert (each.config["experiment"], each.config["seed"]) == ("KD at 8/255", 3)

    pytest.importorskip("wandb_workspaces")
    losses, accuracies, measured, adherence = panels(board.workspace(study)).values()
    assert {"epoch", *chain(*losses, *accuracies)} <= fitted.history.keys()
    assert {*chain(*measured, *adherence)} <= tested.history.keys()
    assert len(measured) == 4
    assert len(adherence[0]) == 2
