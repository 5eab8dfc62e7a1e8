"""A small repository, and sandboxes on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from container_engine import NoEngine, engine

from swe_env.sandbox import Sandbox, SandboxSpec, get
from swe_env.sandbox.conformance.bench import make_base

if TYPE_CHECKING:
    from swe_env.sandbox.docker import DockerFactory

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


@pytest.fixture(scope="session")
def engine_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a container engine; without one the tests that need it are skipped."""
    pytest.importorskip("docker", reason="the docker SDK is not installed")
    running = engine(tmp_path_factory.mktemp("engine"))
    try:
        host = running.__enter__()
    except NoEngine as error:
        pytest.skip(str(error))
    try:
        yield host
    finally:
        running.__exit__(None, None, None)


@pytest.fixture
def docker(engine_host: str, monkeypatch: pytest.MonkeyPatch) -> DockerFactory:
    """The docker factory on that engine."""
    from swe_env.sandbox.docker import DockerFactory

    monkeypatch.setenv("DOCKER_HOST", engine_host)
    return DockerFactory()
