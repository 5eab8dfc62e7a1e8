"""Where commands run: `get(name)` gives a factory, `check_sandbox(factory)` proves one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swe_env.plugins import Registry
from swe_env.sandbox.base import (
    WORKDIR,
    Entry,
    Files,
    Limits,
    Sandbox,
    SandboxFactory,
    SandboxSpec,
    Snapshot,
)

if TYPE_CHECKING:
    from swe_env.sandbox.conformance import check_sandbox

__all__ = [
    "WORKDIR",
    "Entry",
    "Files",
    "Limits",
    "Sandbox",
    "SandboxFactory",
    "SandboxSpec",
    "Snapshot",
    "check_sandbox",
    "get",
    "sandboxes",
]

sandboxes: Registry[Any] = Registry(
    "sandbox",
    {
        "auto": "swe_env.sandbox.auto:AutoFactory",
        "docker": "swe_env.sandbox.docker:DockerFactory",
        "local": "swe_env.sandbox.local:LocalFactory",
        "process": "swe_env.sandbox.process:ProcessFactory",
    },
)
"""Factory classes (or ready factories) by name; a plug-in adds its own."""


def get(name: str = "auto") -> SandboxFactory:
    """The factory of that name: ``auto``, ``local``, ``docker``, ``process``, or a plug-in's.

    Raises:
        ConfigError: there is none of that name; says what was near.
    """
    found = sandboxes.get(name)
    factory: SandboxFactory = found() if isinstance(found, type) else found
    return factory


def name_of(sandbox: SandboxFactory | str) -> str:
    """What a record calls a sandbox: the name it is asked for by, or its factory's."""
    if isinstance(sandbox, str):
        return sandbox
    return str(getattr(sandbox, "__qualname__", type(sandbox).__qualname__))


def __getattr__(name: str) -> Any:
    if name == "check_sandbox":
        from swe_env.sandbox.conformance import check_sandbox

        return check_sandbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
