"""docs/selection.md prints what it says it prints."""

from __future__ import annotations

import re
from pathlib import Path

from agents.selection import choose, selectors
from tests.agents.made import attempt

PAGE = Path(__file__).parents[3] / "docs" / "selection.md"


def test_the_examples_run_and_print_what_the_page_shows(capsys, monkeypatch):
    monkeypatch.setattr(selectors, "_objects", dict(selectors._objects))
    text = PAGE.read_text(encoding="utf-8")
    example, plugin = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out == shown
    exec(plugin, {})
    attempts = [attempt(0, patch="long patch"), attempt(1, patch="short")]
    assert choose("shortest-patch", attempts).chosen is attempts[1]
