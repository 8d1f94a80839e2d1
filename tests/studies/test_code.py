"""Which code a run depends on: followed through re-exports, and heard only where its meaning changes."""

import sys

import pytest

from studies import code

FILES = {
    "networks/__init__.py": "from networks.mlp import MLP\nfrom networks.wrn import WRN as WideResNet\n",
    "networks/mlp.py": '"""A module."""\nimport torch\nfrom networks.base import Base\n\nclass MLP(Base):\n    x = 1\n',
    "networks/wrn.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from networks.other import Other\n",
    "networks/base.py": "def late():\n    from attacks import pgd\n\nclass Base: ...\n",
    "networks/other.py": "class Other: ...\n",
    "attacks/__init__.py": "from attacks.pgd import PGD\n",
    "attacks/pgd.py": "PGD = 1\n",
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Writes files of a small house, and forgets what was known of it."""

    def build(**changed):
        for name, text in {**FILES, **changed}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        for known in (code._closure, code._imports, code._tree, code._meaning):
            known.cache_clear()

    monkeypatch.setattr(code, "ROOT", tmp_path)
    build()
    yield build
    for known in (code._closure, code._imports, code._tree, code._meaning):
        known.cache_clear()


def test_imports_are_followed_by_name(house):
    assert code._closure("networks.MLP") == {"networks/mlp.py", "networks/base.py", "attacks/pgd.py"}
    assert code._closure("networks.WideResNet") == {"networks/wrn.py"}  # what type checkers alone read does not count
    assert code._closure("networks.mlp.MLP") == code._closure("networks.MLP")
    assert code._closure("torch.optim.SGD") == set()


@pytest.mark.parametrize(
    ("file", "text", "heard"),
    [
        ("networks/mlp.py", FILES["networks/mlp.py"].replace("A module", "Another"), False),
        ("networks/mlp.py", FILES["networks/mlp.py"] + "# a comment\n\n", False),
        ("networks/mlp.py", FILES["networks/mlp.py"].replace("x = 1", "x = 2"), True),
        ("networks/base.py", FILES["networks/base.py"] + "y = 1\n", True),
        ("attacks/pgd.py", "PGD = 2\n", True),
        ("networks/wrn.py", "z = 1\n", False),
        ("networks/other.py", "z = 1\n", False),
    ],
)
def test_a_key_follows_what_the_code_does(house, file, text, heard):
    before = code.code_key(["networks.MLP"])
    house(**{file: text})
    assert (code.code_key(["networks.MLP"]) != before) is heard


def test_the_closure_holds_all_that_python_loads():
    """Against the interpreter: what importing a module loads of ours, but for packages' other re-exports."""
    names = ("networks.wide_resnet", "attacks.gradient")
    for name in names:
        if name not in sys.modules:
            __import__(name)
    for file in code._closure("attacks.PGD") | code._closure("networks.WideResNet"):
        assert (code.ROOT / file).is_file()
    direct = code._closure("lightning_modules.ARD")
    assert {"lightning_modules/ard.py", "lightning_modules/base.py", "lightning_modules/losses.py"} <= direct
    assert "attacks/jsma.py" not in direct
