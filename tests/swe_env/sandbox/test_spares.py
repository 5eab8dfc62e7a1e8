"""Keepers prepared ahead, and how few processes a call costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swe_env.sandbox import client
from swe_env.sandbox.base import SandboxSpec
from swe_env.sandbox.local import LocalFactory
from swe_env.tools import ToolContext, toolset
from swe_env.types import Task

pytestmark = pytest.mark.skipif(bool(LocalFactory().available()), reason="no namespaces here")


def _keepers() -> set[int]:
    """The keepers of this process, spares included."""
    process = client._launcher._process
    assert process is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def test_the_next_sandbox_begins_in_a_keeper_that_waits_already(start):
    start("local")
    time.sleep(0.2)
    waiting = _keepers()
    assert start("local")._keeper.pid in waiting
    time.sleep(0.2)
    # A start costs the program one new process of its own: the spare for the start after it.
    assert len(_keepers() - waiting) == 1


def test_a_spare_is_for_sandboxes_of_its_sort(start):
    start("local")
    time.sleep(0.2)
    waiting = _keepers()
    box = start("local", network=True)
    assert box._keeper.pid not in waiting
    assert "lo" in box.exec("ls /sys/class/net 2>/dev/null || cat /proc/net/dev").output
    assert len(client._spares._waiting) <= client._SORTS


def test_spares_that_were_killed_are_replaced(start):
    first = start("local")
    time.sleep(0.2)
    for pid in _keepers() - {first._keeper.pid}:
        os.kill(pid, signal.SIGKILL)
    assert start("local").exec("cat README").output == "read me\n"


MOUNTED = """
import subprocess, sys, time
from pathlib import Path
from swe_env.sandbox import SandboxSpec, get
base = Path(sys.argv[1])
get("local")(SandboxSpec(base=base)).close()
time.sleep(0.2)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base], check=True)
(base / "only").write_text("mounted later")
with get("local")(SandboxSpec(base=base)) as box:
    print(box.exec("ls").output, end="")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_spare_that_sees_another_folder_at_the_path_is_not_used(base):
    command = ["unshare", "-m", sys.executable, "-c", MOUNTED, str(base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "only\n", done.stderr


def test_a_base_that_is_gone_is_a_sentence(tmp_path):
    from swe_env.errors import SandboxError

    with pytest.raises(SandboxError, match="cannot be used in a sandbox: No such file"):
        LocalFactory()(SandboxSpec(base=tmp_path / "gone"))


def test_file_tools_start_no_process_and_a_command_none_but_its_own(start, monkeypatch):
    box = start("local")
    task = Task(instance_id="t", repo="a/b", base_commit="", problem_statement="").public()
    ctx = ToolContext(sandbox=box, task=task, run_tests=lambda targets: pytest.fail("not asked"))
    tools = toolset()
    tools.call(ctx, "bash", {"command": "true"})
    asked: list[dict] = []
    send = client.wire.send
    monkeypatch.setattr(client.wire, "send", lambda *args: (asked.append(args[1]), send(*args)))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **more: pytest.fail("a process"))
    calls = [
        ("view", {"path": "pkg/mod.py"}),
        ("view", {}),
        ("search", {"query": "return"}),
        ("edit", {"path": "pkg/mod.py", "old_str": "return 1", "new_str": "return 2"}),
        ("search", {"query": "return 2"}),
        ("bash", {"command": "echo hello"}),
    ]
    for name, arguments in calls:
        assert tools.call(ctx, name, arguments).exit_code == 0, (name, arguments)
    # The shell lives and `echo` is its own: nobody was asked to start anything.
    assert asked == []
    box.exec(["true"])
    assert [request["op"] for request in asked] == ["spawn"]
