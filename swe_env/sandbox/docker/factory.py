"""Starts `docker` sandboxes: which image, which settings, and containers kept ready."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from swe_env.errors import ConfigError, SandboxError
from swe_env.sandbox.base import WORKDIR, Sandbox, SandboxSpec
from swe_env.sandbox.docker import images, owner
from swe_env.sandbox.docker.container import Setup
from swe_env.sandbox.docker.engine import Engine, connect
from swe_env.sandbox.docker.pool import shared_pool
from swe_env.sandbox.docker.sandbox import DockerSandbox
from swe_env.sandbox.kept import BASE_ENV

_reaped: set[tuple[str, int]] = set()
_reaping = threading.Lock()


class DockerFactory:
    """Starts `docker` sandboxes."""

    def __init__(
        self,
        *,
        user: str | None = None,
        pool: int | None = None,
        capabilities: tuple[str, ...] | None = None,
    ) -> None:
        """Settings not given come from the environment.

        Args:
            user: ``uid`` or ``uid:gid`` of every command, ``SWE_ENV_DOCKER_USER``; by default the
                image's own user, which is root in most, without any of root's rights.
            pool: containers kept ready for the next start on the same image,
                ``SWE_ENV_DOCKER_POOL``; none by default.
            capabilities: Linux capabilities that commands keep, ``SWE_ENV_DOCKER_CAPABILITIES``
                (separated by commas); none by default.

        Raises:
            ConfigError: a setting has the wrong form.
        """
        self.user = os.environ.get("SWE_ENV_DOCKER_USER", "") if user is None else user
        if not all(part.isdigit() for part in self.user.split(":")) and self.user:
            raise ConfigError(
                f"The docker sandbox's user is a number, or two with a colon, not {self.user!r}."
            )
        given = os.environ.get("SWE_ENV_DOCKER_CAPABILITIES", "")
        listed = tuple(name.strip() for name in given.split(",") if name.strip())
        self.capabilities = listed if capabilities is None else capabilities
        size = os.environ.get("SWE_ENV_DOCKER_POOL", "0") if pool is None else str(pool)
        if not size.isdigit():
            raise ConfigError(f"SWE_ENV_DOCKER_POOL is a number of containers, not {size!r}.")
        self.pool = shared_pool(int(size))

    def available(self) -> str:
        """Empty when an engine answers, else what to do."""
        try:
            connect()
        except SandboxError as error:
            return str(error)
        return ""

    def __call__(self, spec: SandboxSpec) -> Sandbox:
        """Start one: on the image, or on a copy-on-write of `spec.base` with this system's /usr."""
        engine = connect()
        _reap_once(engine)
        setup, ready, workdir = self._setup(engine, spec)
        return DockerSandbox(spec, self.pool.take(engine, setup), ready, workdir=workdir)

    def _setup(self, engine: Engine, spec: SandboxSpec) -> tuple[Setup, images.Ready, str]:
        binds = {inside: str(folder.absolute()) for inside, folder in spec.binds.items()}
        hidden: tuple[str, ...] = ()
        workdir = spec.workdir if spec.image else WORKDIR
        if spec.image:
            ready = images.prepared(engine, spec.image, workdir, self.user)
            own = {**BASE_ENV, "TMPDIR": "/tmp", **ready.env}
        else:
            ready = images.imported(engine, spec.base.absolute(), self.user)
            binds = {**images.system_binds(), **binds}
            hidden = tuple(folder for folder in spec.hidden if _inside(folder, binds))
            own = {**BASE_ENV, "HOME": "/root", "TMPDIR": "/tmp"}
        for inside, folder in binds.items():
            if not Path(folder).exists():
                raise SandboxError(f"The folder {folder}, to be seen at {inside}, is not there.")
        setup = Setup(
            image=ready.image,
            env={**own, **spec.variables(workdir)},
            limits=spec.limits,
            network=spec.network,
            user=self.user,
            capabilities=self.capabilities,
            binds=binds,
            hidden=hidden,
        )
        return setup, ready, workdir


def _inside(folder: str, binds: dict[str, str]) -> bool:
    return any(Path(folder).is_relative_to(bound) for bound in binds)


def _reap_once(engine: Engine) -> None:
    """The first start in a process removes what programs that were killed left behind."""
    with _reaping:
        key = (engine.host, os.getpid())
        if key not in _reaped:
            _reaped.add(key)
            owner.reap(engine)
