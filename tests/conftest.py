"""Fixtures shared by all tests: a tiny real repository with a bug, as a task."""

from __future__ import annotations

import difflib
import os
import resource
from pathlib import Path

import pytest
from hypothesis import settings

# An example that takes long on a busy machine is no failure.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each use all cores wait for one another; read when torch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What an ordinary user is given: with root's larger limit a leak of descriptors would not show.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(_soft, 1024), _hard))

from swe_env.types import Recipe, Source, Task  # noqa: E402

GOOD = '''\
"""A small shop."""


def total(prices, discount=0):
    """Sum of the prices less a discount in percent."""
    amount = sum(prices)
    return amount * (100 - discount) / 100


def label(name):
    """The name as it is printed on a bill."""
    return name.strip().title()
'''
BAD = GOOD.replace("(100 - discount)", "(100 + discount)")
VISIBLE = """\
from shop import label, total


def test_total_without_discount():
    assert total([1, 2]) == 3


def test_label():
    assert label(" green tea ") == "Green Tea"
"""
HIDDEN = (
    VISIBLE
    + """

def test_discount():
    assert total([100], discount=10) == 90
"""
)


def unified(path: str, before: str, after: str) -> str:
    """A git-style diff of one file."""
    lines = difflib.unified_diff(
        before.splitlines(True), after.splitlines(True), f"a/{path}", f"b/{path}"
    )
    return f"diff --git a/{path} b/{path}\n" + "".join(lines)


@pytest.fixture(scope="session")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files in the agent's starting state."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(BAD)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_shop.py").write_text(VISIBLE)
    return folder


@pytest.fixture(scope="session")
def shop_task(shop_folder: Path) -> Task:
    """A task with one bug, one hidden test that shows it and two visible tests that pass."""
    return Task(
        instance_id="shop-1",
        repo="tests/shop",
        base_commit="",
        problem_statement="`shop.total([100], discount=10)` returns 110.0; it should be 90.0.",
        patch=unified("shop.py", BAD, GOOD),
        test_patch=unified("tests/test_shop.py", VISIBLE, HIDDEN),
        FAIL_TO_PASS=("tests/test_shop.py::test_discount",),
        PASS_TO_PASS=(
            "tests/test_shop.py::test_total_without_discount",
            "tests/test_shop.py::test_label",
        ),
        source=Source(kind="folder", location=str(shop_folder)),
        environment=Recipe(requirements=("pytest==9.1.1",)),
    )
