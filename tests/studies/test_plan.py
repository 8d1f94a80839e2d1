"""Where a study's runs are, what counts as done, and what a change makes run again."""

import json
import os
import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

from studies import code
from studies import plan as planning
from studies.disk import FACTS, log_of, partial
from studies.grid import read
from studies.overview import clock, estimate, state
from studies.plan import plan

NETWORK = {"class_path": "networks.MLP", "init_args": {"widths": [16]}}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A grid of a teacher and its students over T, with its configs, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    Path("network.yaml").write_text(yaml.safe_dump(NETWORK))
    Path("suite.yaml").write_text(yaml.safe_dump({"attacks": [{"class_path": "attacks.FGSM"}]}))
    config = {"model": {"class_path": "lightning_modules.Teacher", "init_args": {"network": "network.yaml"}}}
    Path("config.yaml").write_text(yaml.safe_dump({**config, "suite": "suite.yaml", "name": "a"}))
    grid = {
        "seeds": [0, 1],
        "axes": {"T": [1, 2]},
        "runs": [
            {"name": "teacher", "config": "config.yaml"},
            {"name": "at {T}", "config": "config.yaml", "set": {"model.temperature": "{T}"}, "teacher": "teacher"},
        ],
        "judge": {"weak": {"set": {"suite": "suite.yaml"}}, "strong": {"set": {"suite.images": 5}}},
    }
    write(grid)
    return grid


def write(grid):
    Path("grid.yaml").write_text(yaml.safe_dump(grid))


def planned(any_code=False):
    return plan(read(Path("grid.yaml")), Path("runs"), any_code)


def fits(found):
    return {id: each.folder for id, each in found.cells.items()}


def judged(found):
    return {(id, name): folder for id, each in found.cells.items() for name, folder in each.judgings.items()}


def finish(found, only=None):
    """Makes folders as a worker leaves them."""
    for id, each in found.cells.items():
        if only is None or id in only:
            for number, folder in enumerate([each.folder, *each.judgings.values()], 1):
                folder.mkdir(parents=True, exist_ok=True)
                facts = {"name": each.cell.name, "words": each.cell.asked.words(), "seconds": 10.0**number}
                facts["resumed"] = False
                (folder / FACTS).write_text(json.dumps(facts))


def test_every_run_has_a_place_of_its_own(files):
    found = planned()
    assert len(set(fits(found).values())) == 6
    assert len(set(judged(found).values())) == 12
    assert found.cells["at 2 #1"].teacher == "teacher #1"
    assert [*found.cells][:2] == ["teacher #0", "teacher #1"]


def test_touching_a_file_or_a_comment_in_it_changes_nothing(files):
    before = planned()
    for name in ("config.yaml", "network.yaml", "suite.yaml", "grid.yaml"):
        path = Path(name)
        path.write_text("# said again\n" + path.read_text())
        os.utime(path, (1, 1))
    assert (fits(planned()), judged(planned())) == (fits(before), judged(before))


def test_a_changed_attack_is_tested_again_and_nothing_trained(files):
    before = planned()
    files["judge"]["strong"]["set"]["suite.images"] = 6
    write(files)
    after = planned()
    assert fits(after) == fits(before)
    changed = {key for key, folder in judged(after).items() if folder != judged(before)[key]}
    assert changed == {(id, "strong") for id in before.cells}
    Path("suite.yaml").write_text(yaml.safe_dump({"attacks": [{"class_path": "attacks.PGD"}]}))
    assert fits(planned()) == fits(before)  # though every config names that file
    assert not set(judged(planned()).values()) & set(judged(before).values())


def test_a_new_seed_adds_its_runs_alone(files):
    before = planned()
    files["seeds"] = [0, 1, 2]
    write(files)
    after = planned()
    assert set(after.cells) - set(before.cells) == {"teacher #2", "at 1 #2", "at 2 #2"}
    assert fits(before).items() <= fits(after).items()


def test_what_a_teacher_learned_from_is_heard_by_its_students(files):
    before = fits(planned())
    files["runs"][0]["set"] = {"trainer.max_epochs": 5}
    write(files)
    assert not set(before.values()) & set(fits(planned()).values())


def test_a_changed_network_trains_all_again(files):
    before = fits(planned())
    Path("network.yaml").write_text(yaml.safe_dump({**NETWORK, "init_args": {"widths": [17]}}))
    assert not set(before.values()) & set(fits(planned()).values())


def test_changed_code_trains_what_it_concerns_again_unless_told_not_to(files, monkeypatch):
    before = planned()
    finish(before)
    assert all(each.done for each in before.cells.values())
    own = planning.code_key
    monkeypatch.setattr(planning, "code_key", lambda names: own(chain(names, ["networks.WideResNet"])))
    after = planned()
    assert not any(each.done for each in after.cells.values())
    assert all(each.done for each in planned(any_code=True).cells.values())
    assert fits(planned(any_code=True)) == fits(before)
    assert all(each.folder.exists() for each in before.cells.values())  # nothing is lost


def test_a_class_of_ones_own_is_read_too(files):
    Path("my_network.py").write_text("from my_layers import Layer\nclass Net: ...\n")
    Path("my_layers.py").write_text("class Layer: ...\n")
    files["runs"][0]["set"] = {"model.network": "my_network.Net"}
    write(files)
    before = fits(planned())
    Path("my_layers.py").write_text("class Layer:\n    width = 1\n")
    for known in (code._closure, code._imports, code._tree, code._meaning):
        known.cache_clear()  # a command reads every file once
    assert not set(before.values()) & set(fits(planned()).values())


def test_a_config_that_names_itself_is_refused(files):
    Path("network.yaml").write_text(yaml.safe_dump({"again": "network.yaml"}))
    with pytest.raises(ValueError, match=r"network.yaml names itself"):
        planned()
    Path("network.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"network.yaml is no YAML"):
        planned()
    Path("network.yaml").write_text("")
    Path("config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"config.yaml is no config"):
        planned()


def test_a_run_tells_its_tests_its_own_suite_with_its_contents(files):
    """The fit may have been made for a study with another."""
    files["runs"][0]["set"] = {"suite": "suite.yaml", "suite.images": 7, "trainer.max_epochs": 2}
    write(files)
    found = planned()
    first, second, *rest = found.said["cells"]["teacher #0"]["judged"]
    assert (first, yaml.safe_load(second)) == ("--config", {"suite": {"attacks": [{"class_path": "attacks.FGSM"}]}})
    assert yaml.safe_load(rest[1]) == yaml.safe_load(second)
    assert rest[2:] == ["--suite.images", "7"]


def test_plans_of_other_grids_lie_beside_each_other(files):
    first = planned()
    files["runs"][0]["set"] = {"trainer.max_epochs": 2}
    write(files)
    assert planned().file != first.file
    assert planned().file.parent == first.file.parent


def test_a_seed_of_a_teacher_serves_all_its_students(files):
    files["runs"][0]["seeds"] = [0]
    write(files)
    assert {each.teacher for each in planned().cells.values()} == {None, "teacher #0"}
    files["runs"][0]["seeds"], files["seeds"] = [0, 1], [0, 1, 2]
    write(files)
    with pytest.raises(ValueError, match=re.escape("'at 1 #2' has no teacher of its seed, 'teacher' has [0, 1]")):
        planned()


def test_circles_and_twins_are_refused(files):
    files["runs"].append({"name": "twin", "config": "config.yaml"})
    write(files)
    with pytest.raises(ValueError, match="the same run under two names: 'teacher' and 'twin'"):
        planned()
    files["runs"][2:] = []
    files["runs"][0]["teacher"] = "at 1"
    write(files)
    with pytest.raises(ValueError, match="in a circle: 'teacher' of 'at 1' of 'teacher'"):
        planned()


def test_groups_wait_for_those_that_hold_their_teachers(files):
    files["group"] = 3
    write(files)
    found = planned()
    assert [(len(group.cells), group.needs) for group in found.groups] == [
        (1, ()),  # of a group's size would be one; two cores are hardly ever idle then
        (1, ()),
        (2, ("group_0_0", "group_0_1")),
        (2, ("group_0_0", "group_0_1")),
    ]
    assert sorted(id for group in found.groups for id in group.cells) == sorted(found.cells)


def test_an_index_of_a_group_with_something_to_do_is_forgotten(files):
    found = planned()
    found.write()
    for group in found.groups:
        group.index.write_text("{}")
    finish(found, {"teacher #0"})
    planned().write()
    assert all(group.index.exists() for group in found.groups)  # what runs now is not disturbed by a plan
    planned().forget()
    kept = [group.cells for group in found.groups if group.index.exists()]
    assert kept == [("teacher #0",)]
    said = json.loads(found.file.read_text())
    assert [*said["cells"]] == [*found.cells]
    assert said["cells"]["at 1 #0"]["teacher"] == str(found.cells["teacher #0"].folder.absolute())


def test_a_students_state_follows_its_teachers(files):
    found = planned()
    teacher, student = found.cells["teacher #0"], found.cells["at 1 #0"]
    assert (state(found, teacher), state(found, student)) == ("waiting", "waiting")
    log = log_of(teacher.folder)
    log.parent.mkdir(parents=True)
    log.with_suffix(".failed.json").write_text(json.dumps({"said": "No.", "log": str(log), "step": "fit"}))
    assert (state(found, teacher), state(found, student)) == ("failed", "skipped")
    finish(found, {"teacher #0"})
    assert (state(found, teacher), state(found, student)) == ("done", "waiting")


def test_time_is_estimated_from_finished_runs_like_them(files):
    found = planned()
    missing = [*found.cells.values()]
    root = Path("runs/studies/cells")
    assert estimate(missing, root) == (0.0, 6)
    finish(found, {"at 1 #0"})
    missing = [each for each in found.cells.values() if not each.done]
    # A fit of 10 s and tests of 100 and 1,000 s; the other names are taken to be like the one of the same config.
    assert estimate(missing, root) == (5 * 1110.0, 0)
    assert (clock(59), clock(600), clock(36000)) == ("59 s", "10 min", "10.0 h")


def test_a_partial_folder_is_hidden_beside_its_place():
    assert partial(Path("a/b")) == Path("a/.b.partial")
