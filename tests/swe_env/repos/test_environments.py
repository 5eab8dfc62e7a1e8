"""Environments: built once from pins, found by commands, clear when they cannot be had."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from swe_env.errors import RecipeError, TaskError
from swe_env.repos import ENVIRONMENT, environment, head, interpreter, pristine, sandbox_spec
from swe_env.repos.archives import download
from swe_env.repos.environments import import_roots
from swe_env.sandbox import get
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


def test_what_an_install_command_makes_is_in_the_checkout_and_in_no_diff(tmp_path):
    folder = tmp_path / "pkg"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "mod.py").write_text("from made import VERSION\n")
    (folder / "setup.py").write_text("old\n")
    install = (
        "echo VERSION = 7 > src/made.py && echo new > setup.py && mkdir build && touch build/x"
    )
    task = Task(
        instance_id="t-1",
        repo="t",
        base_commit="",
        problem_statement="",
        source=Source(kind="folder", location=str(folder)),
        environment=Recipe(python=PYTHON, install=install, pythonpath=("src",)),
    )
    spec = sandbox_spec(task)
    assert (spec.base / "setup.py").read_text() == "old\n"
    assert not (spec.base / "build").exists()
    box = get("process")(spec)
    try:
        assert box.exec(["python", "-c", "import mod; print(mod.VERSION)"]).output.strip() == "7"
        assert box.exec(["git", "status", "--porcelain"]).output == ""
        assert box.diff() == ""
        box.write_file("src/mod.py", b"VERSION = 8\n")
        assert "made.py" not in box.diff()
        assert "mod.py" in box.diff()
    finally:
        box.close()
    assert sandbox_spec(task) == spec


def test_install_commands_find_uv_and_leave_no_trace_of_where_they_ran(tmp_path):
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "mod.py").write_text("x = 1\n")
    source = Source(kind="folder", location=str(folder))
    site = "site=$(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))')"
    map_ = """echo "MAPPING = {'a': '$PWD/lib/a', 'b': '$PWD/b'}" > "$site/__editable___f.py\""""
    install = f'uv --version && {site} && echo "$PWD/src" > "$site/__editable__.pkg.pth" && {map_}'
    built = environment(Recipe(python=PYTHON, install=install), pristine(source))
    assert not list(built.glob("lib/python*/site-packages/__editable__*"))
    assert import_roots(built) == [".", "lib", "src"]
    with pytest.raises(RecipeError, match=r"install command 'echo why >&2; exit 3' failed: why"):
        environment(Recipe(python=PYTHON, install="echo why >&2; exit 3"), pristine(source))


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
