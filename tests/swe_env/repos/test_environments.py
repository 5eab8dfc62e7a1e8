"""Environments: built once from pins, found by commands, clear when they cannot be had."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from swe_env.errors import RecipeError, TaskError
from swe_env.repos import ENVIRONMENT, environment, head, interpreter, pristine, sandbox_spec
from swe_env.repos.archives import download
from swe_env.types import Image, Recipe, Source, Task

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "cache"))


def test_a_python_that_is_not_there_is_one_sentence():
    with pytest.raises(RecipeError, match=r"Python 2\.4 is not on this machine: get it with `uv"):
        interpreter("2.4")


def test_the_interpreter_is_a_base_one_of_that_version():
    python = interpreter(PYTHON)
    asked = "import sys; print('%d.%d' % sys.version_info[:2], sys.prefix == sys.base_prefix)"
    said = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [PYTHON, "True"]


def test_an_environment_moves_with_its_folder_and_is_built_once(tmp_path):
    built = environment(Recipe(python=PYTHON))
    assert environment(Recipe(python=PYTHON)) == built
    moved = built.rename(tmp_path / "moved")
    asked = [moved / "bin/python", "-c", "import sys; print(sys.prefix)"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(moved)


def test_the_spec_names_paths_inside_and_where_they_are(tmp_path):
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "mod.py").write_text("x = 1\n")
    source = Source(kind="folder", location=str(folder))
    recipe = Recipe(python=PYTHON, pythonpath=("src", "."))
    task = Task(
        instance_id="t-1",
        repo="t",
        base_commit=head(pristine(source)),
        problem_statement="",
        source=source,
        environment=recipe,
    )
    spec = sandbox_spec(task)
    assert spec.env["PATH"].startswith("{/opt/env}/bin:")
    assert spec.env["PYTHONPATH"] == "{workdir}/src:{workdir}"
    assert (spec.binds[ENVIRONMENT] / "bin/python").exists()
    assert not any(str(tmp_path) in value for value in spec.env.values())
    home = interpreter(PYTHON).parent.parent
    assert home.is_relative_to("/usr") or spec.binds[str(home)] == home
    image = sandbox_spec(replace(task, environment=Image(name="some/image")))
    assert (image.image, image.binds) == ("some/image", {})


@pytest.mark.network
def test_pins_that_do_not_exist_are_told_with_their_names():
    with pytest.raises(RecipeError, match=r"toolz==999.* could not be built"):
        environment(Recipe(python=PYTHON, requirements=("toolz==999",)))


@pytest.mark.network
def test_an_sdist_is_verified_kept_and_found_offline(monkeypatch):
    sha256 = "1a29730d366e996aaacffb2f1f1cb9593dc38e2ddd30c91250c6dde09ea9b417"
    with pytest.raises(TaskError, match="sha256"):
        download("inflection", "0.5.1", "0" * 64)
    archive = download("inflection", "0.5.1", sha256)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert download("inflection", "0.5.1", sha256) == archive
    with pytest.raises(TaskError, match=r"toolz 1\.2\.0 could not be downloaded"):
        download("toolz", "1.2.0")


@pytest.mark.network
def test_what_an_environment_holds_is_compiled_once_and_for_all_sandboxes():
    built = environment(Recipe(python=PYTHON, requirements=("iniconfig==2.0.0",)))
    (package,) = built.glob("lib/python*/site-packages/iniconfig")
    assert list(package.glob("__pycache__/__init__.*.pyc"))
