"""The benchmark's recipes as environments."""

from __future__ import annotations

import pytest

from swe_env.tasks.swebench.recipes import _table, from_spec, recipe_for, serves


def test_every_recipe_of_the_table_becomes_an_environment():
    for repo, versions in _table().items():
        for version in versions:
            found = recipe_for(repo, version)
            assert found is not None
            assert found.recipe.python.startswith("3.")
            assert found.test_command
            # What needs a package manager, conda or tox is nothing that uv can do.
            assert "apt-get" not in found.recipe.install
            assert "conda" not in found.recipe.install
            assert "tox" not in found.test_command
            assert len(set(found.recipe.requirements)) == len(found.recipe.requirements)
    assert recipe_for("own/pkg", "1.0") is None
    assert serves("pytest-dev/pytest", "7.0")
    assert not serves("pytest-dev/pytest", "99")
    assert not serves("matplotlib/matplotlib", "3.7")


def test_tools_come_of_the_recipes_time_unless_it_pins_its_own():
    flask = recipe_for("pallets/flask", "2.3")
    assert flask is not None
    assert "setuptools==70.0.0" in flask.recipe.requirements
    assert "setuptools<69" not in flask.recipe.requirements
    assert "pytest" in flask.recipe.requirements
    own = recipe_for("pytest-dev/pytest", "7.0")
    assert own is not None
    assert "pytest" not in own.recipe.requirements


@pytest.mark.parametrize(
    ("step", "run"),
    [
        ("python -m pip install -e .[test] --verbose", "uv pip install -q -e '.[test]'"),
        ("pip install .", "uv pip install -q -e ."),
        ("python setup.py install", "uv pip install -q -e ."),
        ("pip install -v --no-use-pep517 --no-build-isolation -e .", "uv pip install -q -e ."),
        ("make all", "make all"),
    ],
)
def test_installation_steps_are_said_in_uvs_words(step, run):
    recipe = from_spec({"python": "3.9", "install": step}, repo="own/pkg").recipe
    assert recipe.install.endswith(run + "; }")


def test_frozen_pins_win_and_entries_of_a_lost_machine_are_left_out():
    spec = {"python": "3.9", "install": "pip install -e .", "pip_packages": ["pytest"]}
    frozen = "attrs==23.1.0\npytest==8.3.5\nwheel @ file:///croot/wheel\n-e git+https://x#egg=y\n"
    recipe = from_spec(spec, repo="own/pkg", frozen=frozen).recipe
    assert recipe.requirements[:2] == ("attrs==23.1.0", "pytest==8.3.5")
    assert not any("file:" in pin or "git+" in pin for pin in recipe.requirements)
