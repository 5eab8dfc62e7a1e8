"""The public names, the layers' start-up cost, and the command line's commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agents
import learners
import swe_env


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


@pytest.mark.parametrize("package", [swe_env, agents, learners])
def test_every_public_name_is_there(package):
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_import_is_quick_and_needs_no_torch():
    code = (
        "import sys, time; sys.modules['torch'] = None; start = time.process_time()\n"
        "import swe_env, agents, learners\n"
        "print(time.process_time() - start)"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(5)
    ]
    assert min(runs) < 0.3
