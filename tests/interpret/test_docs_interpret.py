"""The example in the docs runs as it stands."""

import re
from pathlib import Path

DOCS = (Path(__file__).parents[2] / "docs" / "interpret.md").read_text()


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "agreement" in printed
    assert "Grad-CAM" in printed
