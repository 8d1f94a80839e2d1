"""The report of a study: its figures, its verdicts, and a page that stands alone."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_helpers import ENVIRONMENT, Page, fail, finish, first, grid, whole
from scipy import stats

from attacks.records import Record
from studies import report
from studies.drawings import Drawn
from studies.gather import Results
from studies.report import make, write
from studies.report.pictures import picture
from studies.report.verdicts import beside

PGD = {"label": "PGD-20", "metric": "PGD-20"}
TABLE = {
    "title": "Table 1: robustness",
    "columns": [PGD, {"label": "size", "metric": "parameters"}, {"label": "AA", "metric": "AutoAttack"}],
    "rows": [
        {"label": "teacher", "run": "teacher", "published": {"PGD-20": 91.25, "size": "1.2 M"}},
        {"label": "KD at {T}", "run": "KD at {T}"},
        {"label": "plain", "run": "plain"},
    ],
    "against": "plain",
}


def claim(claimed: str, one: str = "KD at 40", other: str | None = "plain", **said: Any) -> dict[str, Any]:
    named = {} if other is None else {"other": other}
    return {"says": f"{one} is {claimed}.", "one": one, "metric": "PGD-20", "claimed": claimed, **named, **said}


def written(results: Results, folder: Path) -> Page:
    return Page(write(results, "python -m studies run made", folder).read_text())


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_have_means_over_seeds_and_the_papers_figures(tmp_path):
    (table,) = make(whole(tmp_path, tables=[TABLE]), "").tables.values()
    assert table.texts == [
        ["teacher", "90.00 [82.56, 94.48] *91.25*", "1.23 M *1.2 M*", "–"],
        ["KD at 10", "61.00 ± 1.00", "1.23 M", "–"],
        ["KD at 40", "72.00 ± 2.00", "1.23 M", "–"],
        ["plain", "53.00 ± 3.00", "1.23 M", "–"],
    ]
    assert table.heads == ["", "PGD-20, %", "size", "AA"]


def test_files_hold_the_seeds_single_values(tmp_path):
    write(whole(tmp_path, tables=[TABLE]), "", tmp_path / "report")
    rows = lines(tmp_path / "report" / "tables" / "01-table-1-robustness.csv")
    (found,) = [row for row in rows if (row["run"], row["column"]) == ("KD at 40", "PGD-20")]
    values = [float(found[f"seed {seed}"]) for seed in range(3)]
    assert values == pytest.approx([70, 72, 74])
    assert (found["unit"], found["seeds"]) == ("%", "3")
    assert float(found["mean"]) == pytest.approx(72)
    assert float(found["sd"]) == pytest.approx(stats.tstd(values))


def test_runs_are_compared_seed_by_seed_and_image_by_image(tmp_path):
    compared = beside(whole(tmp_path), "KD at 40", "plain", "PGD-20")
    expected = stats.ttest_rel([70, 72, 74], [50, 53, 56])
    interval = expected.confidence_interval(0.95)
    assert compared.by == "seeds"
    assert compared.difference is not None
    assert compared.difference.p == pytest.approx(expected.pvalue)
    assert (compared.difference.low, compared.difference.high) == pytest.approx((interval.low, interval.high))
    # Those that the plain one has right the other has too: 20, 19 and 18 more.
    assert {seed: pair.value for seed, pair in compared.images.items()} == pytest.approx({0: 20, 1: 19, 2: 18})
    assert compared.images[0].p == pytest.approx(stats.binomtest(20, 20).pvalue)


@pytest.mark.parametrize(
    ("said", "verdict", "by"),
    [
        (claim("higher"), "holds", "seeds"),
        (claim("lower"), "does not hold", "seeds"),
        (claim("no lower"), "holds", "seeds"),
        (claim("higher", other=None, than=60), "holds", "seeds"),
        (claim("higher", other=None, than=72), "undecided", "seeds"),
        (claim("lower", one="teacher"), "does not hold", "images"),  # one seed in common
        (claim("higher", one="teacher", other=None, than=85), "undecided", "images"),
        (claim("higher", one="teacher", other=None, than=80), "holds", "images"),
        (claim("higher", metric="clean"), "undecided", "images"),  # all seeds differ by 0
        (claim("lower", metric="parameters"), "undecided", "counts"),
        (claim("lower", metric="parameters", other=None, than=2_000_000), "holds", "counts"),
        (claim("lower", metric="hours", one="teacher"), "undecided", "seeds"),
        (claim("lower", metric="distance", one="teacher"), "does not hold", "unpaired images"),
        (claim("higher", metric="distance", one="KD at 10"), "holds", "unpaired images"),
        (claim("higher", metric="AutoAttack"), "not measured", ""),
    ],
)
def test_claims_are_judged(tmp_path, said, verdict, by):
    (judged,) = make(whole(tmp_path, claims=[said]), "").judged
    assert (judged.verdict, judged.compared.by) == (verdict, by)


def test_claims_of_runs_that_are_not_there(tmp_path):
    said = {"claims": [claim("higher"), claim("higher", one="plain", other="teacher")]}
    found = grid(tmp_path, **said)
    finish(found.cells["plain #0"], {"PGD-20": first(50)})
    fail(found.cells["teacher #0"], "out of memory")
    first_claim, second = make(Results(found), "").judged
    assert (first_claim.verdict, first_claim.compared.why) == ("not measured", "KD at 40 was skipped")
    assert (second.verdict, second.compared.why) == ("not measured", "teacher failed")


def test_a_page_stands_alone(tmp_path):
    page = written(whole(tmp_path, tables=[TABLE], claims=[claim("higher")]), tmp_path / "report")
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) > 4
    links = page.attributes("href")
    assert {"#table-1", "#claims", "#made"} <= set(links)
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert all(source.startswith("data:") for source in page.attributes("src"))
    assert not re.search(r"url\(|@import|https?://", (tmp_path / "report" / "report.html").read_text())
    heads = [attrs for tag, attrs in page.elements if tag == "th" and attrs["scope"] == "col"]
    assert heads
    assert all(attrs["aria-sort"] == "none" for attrs in heads)
    assert "KD at 40 72.0 ± 2.0 against plain 53.0 ± 3.0" in page.said
    assert "holds" in page.said


def test_what_a_recipe_departs_in_is_said_below_the_title(tmp_path):
    quick = {"title": "In small", "note": "Digits in place of CIFAR-10."}
    page = written(whole(tmp_path, recipe="quick", recipes={"quick": quick}), tmp_path / "report")
    assert "In small" in page.said
    assert "Recipe quick: Digits in place of CIFAR-10." in page.said
    assert "**Recipe quick: Digits in place of CIFAR-10.**" in (tmp_path / "report" / "report.md").read_text()


def test_a_table_without_a_run_of_the_recipe_is_named_and_not_shown(tmp_path):
    row = {"label": "KD", "run": "KD at 40"}
    said = {"tables": [TABLE, {**TABLE, "title": "Only at 40", "rows": [row], "against": None}]}
    quick = {"axes": {"T": [10]}}
    page = written(whole(tmp_path, recipe="quick", recipes={"quick": quick}, **said), tmp_path / "report")
    assert "Of these tables the recipe leaves out every run: Only at 40." in page.said
    assert "#table-2" not in page.attributes("href")


def test_figures_are_carried_with_their_text(tmp_path, monkeypatch):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    drawn = Drawn(figure, "a line that rises from 0 to 1", "of one run", "Figure 1")
    monkeypatch.setattr(report, "draw", lambda results, said: [drawn] * said["count"])
    page = written(whole(tmp_path, figures=[{"count": 2}]), tmp_path / "report")
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert [attrs["alt"] for attrs in images] == [drawn.alt] * 2
    assert images[0]["src"].startswith("data:image/svg+xml;base64,")
    assert (images[0]["width"], images[0]["height"]) == ("360", "240")
    files = sorted((tmp_path / "report" / "figures").iterdir())
    assert [path.name for path in files] == ["01-figure-1.svg", "02-figure-1.svg"]
    assert "![a line that rises from 0 to 1](figures/01-figure-1.svg)" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize("points", [10, 6_000])
def test_a_large_drawing_becomes_a_picture(points):
    figure = Figure()
    figure.subplots().plot(*np.random.default_rng(0).normal(size=(2, points)), ".")
    found = picture(figure, "", "points", "")
    assert found.kind == ("svg" if points == 10 else "png")
    assert found.content.startswith(b"<?xml" if points == 10 else b"\x89PNG")
    assert found.content == picture(figure, "", "points", "").content


def test_nothing_is_finished(tmp_path):
    results = Results(grid(tmp_path, tables=[TABLE], claims=[claim("higher")]))
    page = written(results, tmp_path / "report")
    assert "0 of 10 done" in page.said
    assert "10 not run yet" in page.said
    (table,) = make(results, "").tables.values()
    assert table.texts[3] == ["plain", "not run", "not run", "not run"]
    assert "not run" in (tmp_path / "report" / "report.md").read_text()


def test_a_grid_without_tables_claims_and_figures(tmp_path):
    page = written(Results(grid(tmp_path)), tmp_path / "report")
    assert not {"#claims", "#tables", "#figures"} & set(page.attributes("href"))


def test_some_runs_failed(tmp_path):
    found = grid(tmp_path, tables=[TABLE])
    finish(found.cells["plain #1"], {"PGD-20": first(50)})
    fail(found.cells["plain #2"], "the loss is <nan> | at 7")
    fail(found.cells["teacher #0"], "out of memory")
    page = written(Results(found), tmp_path / "report")
    assert "plain #2 : fit: the loss is <nan> | at 7" in page.said
    assert f"{found.cells['plain #2'].folder}.log" in page.said
    assert "KD at 10 #1 : its teacher teacher #0 failed" in page.said
    assert "Runs that are not finished: 2 failed, 6 skipped for a teacher's failure, 1 not run yet." in page.said
    (table,) = make(Results(found), "").tables.values()
    assert [cells[0].text for cells in table.rows] == ["failed", "skipped", "skipped", "50.00 [40.38, 59.62]"]
    assert table.rows[3][0].lacking == "1 of 3 seeds"


def test_it_says_where_runs_differ(tmp_path):
    found = grid(tmp_path)
    finish(found.cells["plain #0"], {}, seconds=3600)
    finish(found.cells["plain #1"], {}, environment={**ENVIRONMENT, "packages": {"torch": "2.15.0"}})
    page = written(Results(found), tmp_path / "report")
    assert "torch 2.11.0 (2); 2.15.0 (2)" in page.said
    assert "they differ in torch" in page.said
    assert "python 3.13.1" in page.said


def test_diagnostics_are_told(tmp_path):
    found = grid(tmp_path)
    for seed, verdict in enumerate(("fine", "misleading", "skipped")):
        planned = found.cells[f"plain #{seed}"]
        finish(planned, {})
        (planned.judgings["attacks"] / "diagnostics-network-best.json").write_text(
            f'[{{"check": "zero gradients", "verdict": "{verdict}", "saw": "saw {seed}", "advice": "Square"}}]'
        )
    results = Results(found)
    assert [each.verdict for each in make(results, "").facts.diagnoses] == ["misleading", "skipped", "fine"]
    page = written(results, tmp_path / "report")
    assert "1 misleading 1 skipped 1 fine" in page.said
    assert "plain #1 (network-best): 1 of 1 checks zero gradients : saw 1 (run next: Square)" in page.said
    assert "saw 0" not in page.said


def test_what_is_named_cannot_break_the_page(tmp_path):
    title = "<script>alert(1)</script> & | more"
    page = written(Results(grid(tmp_path, title=title, tables=[{**TABLE, "title": title}])), tmp_path / "report")
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert title in page.said


def test_a_report_is_written_again_and_leaves_a_persons_files(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    results = whole(tmp_path, tables=[TABLE])
    write(results, "one", folder)
    write(results, "two", folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert "two" in (folder / "report.md").read_text()
    names = {path.name for path in folder.iterdir()}
    assert names == {"notes.txt", "claims.csv", "report.html", "report.md", "tables"}


def test_a_report_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    write(whole(tmp_path), "one", tmp_path / "report")

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(Results(grid(tmp_path)), "two", tmp_path / "report")
    assert "one" in (tmp_path / "report" / "report.md").read_text()
    assert [path.name for path in (tmp_path / "report").iterdir() if path.name.startswith(".")] == []


def test_a_grid_that_is_wrong_is_refused_before_anything_is_written(tmp_path):
    results = Results(grid(tmp_path, tables=[{**TABLE, "against": "nobody"}]))
    with pytest.raises(ValueError, match="no run 'nobody'"):
        write(results, "", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_other_units(tmp_path):
    found = grid(tmp_path)
    for seed, value in enumerate((0.01234, 0.01236, 3e-40)):
        record = Record("amplitude", value, 100, 0.5 * value, 2 * value, 0.1, unit="per unit")
        finish(found.cells[f"plain #{seed}"], {}, [record], seconds=5400)
    columns = [{"label": name, "metric": name} for name in ("amplitude", "hours", "multiply-adds")]
    said = {**TABLE, "columns": columns, "rows": [{"label": "plain", "run": "plain"}], "against": None}
    (table,) = make(Results(grid(tmp_path, tables=[said])), "").tables.values()
    assert table.texts == [["plain", "0.0082 ± 0.0071", "1.50 ± 0.00", "80"]]
    assert table.heads == ["", "amplitude, per unit", "hours, h", "multiply-adds"]
