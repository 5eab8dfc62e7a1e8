"""`auto`: `docker` for images, else `local` where it works, else `process` with its warning."""

from __future__ import annotations

import logging

from swe_env.errors import SandboxError
from swe_env.sandbox.base import Sandbox, SandboxSpec
from swe_env.sandbox.local import LocalFactory
from swe_env.sandbox.process import ProcessFactory

_log = logging.getLogger(__name__)
_told: set[str] = set()
"""What was already said."""


class AutoFactory:
    """Starts the best kind of sandbox that this machine has."""

    def __init__(self) -> None:
        self._local = LocalFactory()

    def available(self) -> str:
        """Empty: there is always one kind that works, for tasks that are no images."""
        return ""

    def __call__(self, spec: SandboxSpec) -> Sandbox:
        """Start one.

        Raises:
            SandboxError: it is to run an image and no container engine can be used; says why.
        """
        if spec.image:
            from swe_env.sandbox.docker import DockerFactory

            docker = DockerFactory()
            if reason := docker.available():
                raise SandboxError(f"The image {spec.image} needs a container engine. {reason}")
            return docker(spec)
        if reason := self._local.available():
            if reason not in _told:
                _told.add(reason)
                _log.warning("No isolation: %s", reason)
            return ProcessFactory()(spec)
        return self._local(spec)
