"""What a grid file says of its report: how it is repeated over the axes, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from report_helpers import RUNS, grid

from studies.layout import Claim, check, claims, tables

COLUMNS = [{"label": "clean", "metric": "clean"}, {"label": "PGD", "metric": "PGD-20", "judge": "attacks"}]
ROW = {"label": "plain", "run": "plain"}
TABLE = {"title": "Table 1", "columns": COLUMNS, "rows": [ROW]}
CLAIM = {"says": "It helps.", "one": "KD at 10", "other": "plain", "metric": "PGD-20", "claimed": "higher"}


def table(folder, recipe="paper", **said: Any):
    (found,) = tables(grid(folder, recipe, tables=[{**TABLE, **said}]).study)
    return found


def test_rows_stand_under_their_columns(tmp_path):
    rows = [{"label": "ours", "run": "plain", "published": {"PGD": 38.21}}, {"label": "KD", "run": "KD at 40"}]
    found = table(tmp_path, rows=rows, note="One sentence.", against="plain")
    assert [(c.label, c.metric, c.judge, c.model) for c in found.columns] == [
        ("clean", "clean", None, "own"),
        ("PGD", "PGD-20", "attacks", "own"),
    ]
    assert [(row.label, row.runs, row.published) for row in found.rows] == [
        ("ours", ("plain", "plain"), (None, 38.21)),
        ("KD", ("KD at 40", "KD at 40"), (None, None)),
    ]
    assert (found.note, found.against, found.left_out) == ("One sentence.", ("plain", "plain"), ())


def test_a_row_that_is_a_run_is_called_like_it(tmp_path):
    (found,) = tables(grid(tmp_path, tables=[{**TABLE, "rows": ["plain", "KD at {T}"]}]).study)
    assert [(row.label, row.runs[0]) for row in found.rows] == [
        (name, name) for name in ("plain", "KD at 10", "KD at 40")
    ]


def test_rows_are_repeated_over_the_axes_that_they_name(tmp_path):
    found = table(tmp_path, rows=[{"label": "T = {T}", "run": "KD at {T}"}, {"label": "KD", "run": "KD at {T}"}])
    assert [(row.label, row.runs[0]) for row in found.rows] == [
        *(("T = 10", "KD at 10"), ("T = 40", "KD at 40")),
        *(("KD", "KD at 10"), ("KD", "KD at 40")),
    ]


def test_rows_have_axes_of_their_own_and_combinations_that_mean_nothing(tmp_path):
    over = {"over": {"T": [40, 70, 10]}}
    found = table(tmp_path, rows=[{"label": "T = {T}", "run": "KD at {T}", **over, "except": [{"T": 10}]}])
    assert [row.label for row in found.rows] == ["T = 40"]  # at 70 the grid has no run


def test_columns_go_across_an_axis(tmp_path):
    rows = [{"label": "KD", "run": "KD at {T}", "published": {"T = 40": 1.0}}, {"label": "plain", "run": "plain"}]
    found = table(tmp_path, columns=[{"label": "T = {T}", "metric": "PGD-20"}], rows=rows, over={"T": [10, 40, 70]})
    assert [column.label for column in found.columns] == ["T = 10", "T = 40", "T = 70"]
    assert [row.runs for row in found.rows] == [("KD at 10", "KD at 40", None), ("plain",) * 3]
    assert found.rows[0].published == (None, 1.0, None)


def test_a_title_makes_a_table_for_each_place(tmp_path):
    rows = [{"label": "KD", "run": "KD at {T}"}]
    said = {**TABLE, "title": "At {T}", "rows": rows, "note": "T is {T}.", "against": "plain"}
    found = tables(grid(tmp_path, tables=[said]).study)
    assert [(each.title, each.note, each.rows[0].runs[0]) for each in found] == [
        ("At 10", "T is 10.", "KD at 10"),
        ("At 40", "T is 40.", "KD at 40"),
    ]


def test_claims_are_repeated_over_the_axes_that_they_name(tmp_path):
    said = [
        {**CLAIM, "says": "At {T} it helps.", "one": "KD at {T}", "judge": "attacks"},
        {"says": "Enough.", "one": "plain", "than": 5, "metric": "clean", "claimed": "no lower"},
    ]
    assert claims(grid(tmp_path, claims=said).study) == [
        Claim("At 10 it helps.", "KD at 10", "PGD-20", "higher", "plain", judge="attacks"),
        Claim("At 40 it helps.", "KD at 40", "PGD-20", "higher", "plain", judge="attacks"),
        Claim("Enough.", "plain", "clean", "no lower", than=5),
    ]


def test_what_a_recipe_leaves_out_is_told(tmp_path):
    said = {
        "tables": [{**TABLE, "rows": [ROW, {"label": "KD", "run": "KD at 40"}]}],
        "claims": [{**CLAIM, "one": "KD at {T}", "says": "{T}"}, {**CLAIM, "one": "KD at 40"}],
        "recipes": {"quick": {"axes": {"T": [10]}}},
    }
    study = grid(tmp_path, "quick", **said).study
    (found,) = tables(study)
    assert [row.label for row in found.rows] == ["plain"]
    assert found.left_out == ("KD",)
    assert [(claim.says, claim.other) for claim in claims(study)] == [("10", "plain"), ("It helps.", None)]


def test_what_a_recipe_leaves_out_everywhere_has_no_braces(tmp_path):
    runs = [{"name": "KD at {T}"}, {"name": "plain"}]
    said = {
        "tables": [{**TABLE, "rows": ["plain", {"label": "KD, {T}", "run": "KD at {T}"}]}],
        "claims": [{**CLAIM, "one": "KD at {T}", "says": "At {T}.", "other": "plain"}],
        "recipes": {"quick": {"only": ["plain"]}},
    }
    study = grid(tmp_path, "quick", runs=runs, **said).study
    assert tables(study)[0].left_out == ("KD, 10", "KD, 40")
    assert [claim.says for claim in claims(study)] == ["At 10.", "At 40."]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"colums": COLUMNS}, "'colums'"),
        ({"title": ""}, "'title'"),
        ({"rows": []}, "'rows'"),
        ({"rows": ["plane"]}, "'plane'"),
        ({"rows": 5}, "rows must be a list, got 5"),
        ({"columns": {"label": "PGD"}}, "columns must be a list"),
        ({"over": {"T": 5}}, "T must be a list, got 5"),
        ({"except": {"T": 10}}, "except must be a list"),
        ({"rows": [{**ROW, "except": [1]}]}, "combinations such as .*, got 1"),
        ({"rows": [{"label": "KD", "run": "KD at 70"}]}, "'KD at 70'.*KD at 10"),
        ({"rows": [{"label": "KD", "run": "KD at {S}"}]}, "axis S"),
        ({"rows": [{**ROW, "published": {"FGSM": 1}}]}, "'FGSM'.*clean, PGD"),
        ({"rows": [{**ROW, "published": [1]}]}, "published"),
        ({"rows": [{"label": "KD", "run": "KD at {T}", "published": {"PGD": 1}}]}, "2 rows"),
        ({"columns": [{"label": "PGD"}]}, "'metric'"),
        ({"columns": [COLUMNS[0], COLUMNS[0]]}, "two columns 'clean'"),
        ({"columns": [{**COLUMNS[0], "judge": "atacks"}]}, "'atacks'.*attacks"),
        ({"columns": [{**COLUMNS[0], "model": "student"}]}, "'student'"),
        ({"against": "KD"}, "'KD'"),
        ({"over": ["T"]}, "over"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, said, message):
    study = grid(tmp_path, tables=[{**TABLE, **said}]).study
    with pytest.raises(ValueError, match=f"made, table 1.*{message}"):
        check(study)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"claimed": "better"}, "'better'"),
        ({"claimed": ["higher"]}, "higher.*got"),
        ({"except": "T"}, "except must be a list"),
        ({"claims": 1}, "'claims'"),
        ({"one": "KD"}, "'KD'"),
        ({"other": "KD at 70"}, "'KD at 70'"),
        ({"than": 5}, "either"),
        ({"other": None, "than": 5}, "either"),
        ({"judge": "nobody"}, "'nobody'"),
        ({"metric": ""}, "'metric'"),
    ],
)
def test_a_claim_that_is_none_is_refused(tmp_path, said, message):
    study = grid(tmp_path, claims=[CLAIM, {**CLAIM, **said}]).study
    with pytest.raises(ValueError, match=f"made, claim 2.*{message}"):
        check(study)


def test_a_claim_against_no_figure_is_refused(tmp_path):
    said = {key: value for key, value in CLAIM.items() if key != "other"} | {"than": "a lot"}
    with pytest.raises(ValueError, match="'a lot'"):
        claims(grid(tmp_path, claims=[said]).study)


def test_a_run_of_several_seeds_is_one(tmp_path):
    study = grid(tmp_path, runs=RUNS, tables=[TABLE]).study
    assert tables(study) == tables(replace(study, cells=study.cells[::-1]))
