"""The page's own tool is short, and works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from swe_env.tools import tools, toolset

PAGE = Path(__file__).parents[3] / "docs" / "environment.md"


def test_a_tool_of_your_own_takes_less_than_fifteen_lines(desk, tmp_path, monkeypatch):
    code = re.search(r"```python\n(# own_tools.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line]) < 15
    (tmp_path / "own_tools.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tools, "_objects", dict(tools._objects))
    desk.tools = toolset(["default", "own_tools:count_lines"])
    desk.put("a.txt", "1\n2\n")
    assert desk.call("count_lines", path="a.txt").text == "2 lines"
    assert desk.call("count_lines", path="gone").text == "Error: There is no gone."
    assert "count_lines" in toolset(["count_lines"]).names
