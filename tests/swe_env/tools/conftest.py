from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swe_env import sandbox as sandboxes
from swe_env.grading import run_tests
from swe_env.sandbox import SandboxSpec
from swe_env.tools import ToolContext, ToolResult, toolset
from swe_env.types import Task

TASK = Task(instance_id="t-1", repo="a/b", base_commit="", problem_statement="")


class Desk:
    """A workspace with tools to call on it."""

    def __init__(self, base: Path) -> None:
        env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": "{workdir}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        self.box = sandboxes.get("process")(SandboxSpec(base=base, env=env))
        self.ctx = ToolContext(
            sandbox=self.box,
            task=TASK.public(),
            command_timeout=30,
            run_tests=lambda targets: run_tests(self.box, targets=targets, timeout=60),
        )
        self.tools = toolset("full")

    def call(self, name: str, **arguments: Any) -> ToolResult:
        return self.tools.call(self.ctx, name, arguments)

    def put(self, path: str, data: str | bytes) -> None:
        raw = data.encode() if isinstance(data, str) else data
        self.box.files.write(path, raw)

    def get(self, path: str) -> bytes:
        return self.box.files.read(path)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "base").mkdir()
    made = Desk(tmp_path / "base")
    yield made
    made.box.close()


@pytest.fixture
def make_tool() -> Callable[..., Any]:
    from swe_env.tools import tool

    return tool(register=False)
