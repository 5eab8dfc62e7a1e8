"""`tools/setup-system.sh` on machines that lack something, with commands that only pretend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "setup-system.sh"
OLD = 'case "$1" in -V) echo "Python 3.9.2" ;; *) exit 1 ;; esac'


@pytest.fixture
def machine(tmp_path):
    """A PATH with `git` and `bwrap`, and a virtual environment that is there already."""
    programs = tmp_path / "bin"
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    programs.mkdir()
    for path in (programs / "git", programs / "bwrap", tmp_path / "venv" / "bin" / "pip"):
        pretend(path, "exit 0")
    return programs


def pretend(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def set_up(programs):
    env = {"PATH": str(programs), "VENV": str(programs.parent / "venv")}
    return subprocess.run(["/bin/sh", str(SCRIPT)], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("package", ["python3", "python3.11"])
def test_root_gets_a_python(machine, package):
    pretend(machine / "id", "echo 0")
    if package != "python3":
        pretend(machine / "python3", OLD)
    link = f"/bin/ln -s {os.path.realpath(sys.executable)} {machine}/{package}"
    pretend(machine / "apt-get", f'case "$*" in *" {package}") {link} ;; esac')
    done = set_up(machine)
    assert done.returncode == 0, done.stderr
    assert f"installing {package}\n" in done.stderr


def test_others_are_told_which_python_was_found(machine):
    pretend(machine / "id", "echo 1000")
    pretend(machine / "python3", OLD)
    done = set_up(machine)
    assert done.returncode == 1
    assert "3.11 or newer is needed, and here is Python 3.9.2: install one" in done.stderr
    (machine / "python3").unlink()
    assert "here is no python3" in set_up(machine).stderr
