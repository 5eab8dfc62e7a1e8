"""One cache for all tests of tasks: the environment with pytest in it is built once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tasks_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks-cache")


@pytest.fixture(scope="module")
def cached(tasks_cache):
    """`SWE_ENV_CACHE` points at the shared cache while a module's tests run."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SWE_ENV_CACHE", str(tasks_cache))
    yield tasks_cache
    patch.undo()
