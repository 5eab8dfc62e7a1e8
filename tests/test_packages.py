"""The public names, the layers' start-up cost, and the command line's commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agents
import learners
import swe_env

ROOT = Path(__file__).parents[1]


def test_public_names_of_the_environment():
    assert swe_env.__all__ == [
        "Action",
        "Observation",
        "RecordTrajectory",
        "ReplayBuffer",
        "SWEEnv",
        "SweError",
        "Task",
        "TestReport",
        "Trajectory",
        "check_sandbox",
        "grade",
    ]


def test_public_names_of_the_agents():
    assert agents.__all__ == [
        "PROJECT",
        "BasePolicy",
        "Episode",
        "Policy",
        "check_policy",
        "make_policy",
        "mean_pass_at_k",
        "render_report",
        "run_episode",
        "run_rollouts",
        "select",
    ]


def test_public_names_of_the_learners():
    assert learners.__all__ == [
        "Progress",
        "StopTraining",
        "TrainConfig",
        "TrainResult",
        "encode",
        "kto_rows",
        "pairs",
        "read_metrics",
        "sft_rows",
        "train",
    ]


@pytest.mark.parametrize("package", [swe_env, agents, learners])
def test_every_public_name_is_there(package):
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_is_quick_and_needs_no_torch():
    code = (
        "import sys, time; sys.modules['torch'] = None; start = time.process_time()\n"
        "import swe_env, agents, learners\n"
        "print(time.process_time() - start)"
    )
    assert min(float(python(code)) for _ in range(5)) < 0.3


@pytest.mark.parametrize("imports", ["swe_env, gymnasium", "gymnasium, swe_env"])
def test_the_environment_is_registered_whichever_import_comes_first(imports):
    assert python(f"import {imports}; print(gymnasium.spec('SWE-v0').entry_point)") == (
        "swe_env.env:SWEEnv\n"
    )


def swe(*arguments, cwd, path=()):
    """`swe` in a fresh interpreter, with folders put before this project's on the path."""
    folders = [*map(str, path), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-c", "from swe_env.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "COLUMNS": "120"},
        check=False,
    )


def test_the_command_line_has_exactly_these_commands(tmp_path):
    shown = swe("--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    panel = shown.stdout.split("Commands", 1)[1]
    assert re.findall(r"^\W? ([a-z][a-z-]*)  ", panel, re.MULTILINE) == [
        "grade",
        "doctor",
        "run",
        "replay",
        "regrade",
        "branch",
        "view",
        "report",
        "train",
        "demo",
        "demo-adapter",
        "tasks",
        "buffer",
        "experiments",
    ]


def test_a_foreign_package_named_agents_is_refused_in_a_sentence(tmp_path):
    foreign = tmp_path / "agents" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("class Agent: ...\n")
    refused = swe("--help", cwd=tmp_path, path=[tmp_path])
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == (
        f"swe: `import agents` finds {foreign}, which is not part of swe-env (the package "
        "openai-agents installs that name too): uninstall it or use a separate virtual "
        "environment.\n"
    )
