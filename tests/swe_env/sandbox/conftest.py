"""A small repository, and sandboxes on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swe_env.sandbox import Sandbox, SandboxSpec, get
from swe_env.sandbox.conformance.bench import make_base

KINDS = ["process", "local"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    make_base(folder)
    return folder


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := get(name).available():
        pytest.skip(reason)
    return name


@pytest.fixture
def start(base: Path) -> Iterator[Callable[..., Sandbox]]:
    opened: list[Sandbox] = []

    def begin(kind: str, **settings: object) -> Sandbox:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            opened.append(get(kind)(SandboxSpec(base=base, **settings)))  # type: ignore[arg-type]
        return opened[-1]

    yield begin
    for sandbox in opened:
        sandbox.close()
