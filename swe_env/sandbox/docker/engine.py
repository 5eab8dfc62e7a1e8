"""The connection to the container engine, and its failures as one sentence each."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from swe_env.errors import SandboxError
from swe_env.sandbox.docker.stream import Stream

_TIMEOUT = 300.0
DEFAULT_HOST = "unix:///var/run/docker.sock"


class ContainerGone(SandboxError):
    """The engine no longer has the container, or it does not run."""


class Missing(SandboxError):
    """The engine has no such image."""


class Engine:
    """One engine for all threads of this process."""

    def __init__(self, host: str) -> None:
        """Connect.

        Raises:
            SandboxError: the SDK is missing, or no engine answers; says what to do.
        """
        try:
            import docker
            import docker.errors
            import docker.utils
            import requests
        except ImportError as error:
            raise SandboxError(
                "The docker sandbox needs the docker SDK: pip install 'swe-env[docker]'."
            ) from error
        self.host = host
        self._errors = docker.errors
        self._lost = (requests.exceptions.RequestException, OSError)
        if not host.startswith(("unix://", "tcp://", "http://")):
            raise SandboxError(
                f"The docker sandbox reaches engines over unix:// and tcp:// only, not {host}: "
                "forward the engine's socket, for example with ssh -L."
            )
        try:
            settings = docker.utils.kwargs_from_env()
            settings["base_url"] = host
            if settings.get("tls"):
                raise SandboxError("The docker sandbox cannot use TLS: unset DOCKER_TLS_VERIFY.")
            self.api: Any = docker.APIClient(**settings, version="auto", timeout=_TIMEOUT)
            if host.startswith("unix://"):
                _share_connections(self.api)
            self.info: dict[str, Any] = self.api.info()
            parts = self.api.version().get("Components") or []
            self.podman = any("podman" in str(part.get("Name")).lower() for part in parts)
        except (docker.errors.DockerException, *self._lost) as error:
            raise SandboxError(_unreachable(host, error)) from error
        if self.info.get("OSType", "linux") != "linux":
            raise SandboxError(f"The engine at {host} runs no Linux containers.")

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turn the engine's refusals into `SandboxError`: "The engine could not <what>: …"."""
        try:
            yield
        except self._errors.ImageNotFound as error:
            raise Missing(f"The container engine could not {what}: {_said(error)}.") from error
        except self._errors.APIError as error:
            text = f"The container engine could not {what}: {_said(error)}."
            gone = error.status_code in (404, 409) and "container" in str(error).lower()
            raise (ContainerGone if gone else SandboxError)(text) from error
        except (self._errors.DockerException, *self._lost) as error:
            raise SandboxError(
                f"The container engine at {self.host} did not {what}: it does not answer."
            ) from error

    def exec(
        self,
        container: str,
        argv: Sequence[str],
        *,
        env: Sequence[str] = (),
        user: str = "",
    ) -> tuple[str, Stream]:
        """Start a process in a container: its id and its three standard streams."""
        with self.doing("start a process in the sandbox"):
            made = self.api.exec_create(
                container,
                list(argv),
                stdin=True,
                environment=list(env),
                user=user,
                workdir="/",
            )["Id"]
            return made, Stream(self._own(self.api.exec_start(made, socket=True)))

    def exec_state(self, exec_id: str) -> tuple[bool, int]:
        """(whether the process still runs, its exit code)."""
        with self.doing("look at a process"):
            state = self.api.exec_inspect(exec_id)
        code = state["ExitCode"]
        return bool(state["Running"]), -1 if code is None else int(code)

    def path_stat(self, container: str, path: str) -> dict[str, Any] | None:
        """What the engine knows of an entry (links not followed), None when there is none."""
        with self.doing("look at a file of the sandbox"):
            answer = self.api.head(
                self.url(f"containers/{container}/archive"),
                params={"path": path},
                timeout=_TIMEOUT,
            )
        found = answer.headers.get("X-Docker-Container-Path-Stat")
        if answer.status_code != 200 or not found:
            return None
        stat: dict[str, Any] = json.loads(base64.b64decode(found))
        return stat

    def disk_used(self, container: str) -> int:
        """Bytes in the container's writable layer."""
        with self.doing("measure the sandbox's disk"):
            answer = self.api.get(
                self.url(f"containers/{container}/json"), params={"size": 1}, timeout=_TIMEOUT
            )
            return int(answer.json().get("SizeRw") or 0)

    def url(self, path: str) -> str:
        """Address of something that the SDK has no function for."""
        return f"{self.api.base_url}/v{self.api.api_version}/{path}"

    def lifeline(self, container: str) -> socket.socket:
        """A connection to the container's standard input, which ends when this process does."""
        with self.doing("attach to a container"):
            return self._own(self.api.attach_socket(container, params={"stdin": 1, "stream": 1}))

    @staticmethod
    def _own(raw: Any) -> socket.socket:
        """The connection as a socket of ours; the SDK's own objects for it are closed."""
        taken = socket.socket(fileno=os.dup(raw.fileno()))
        taken.setblocking(False)
        with contextlib.suppress(AttributeError):
            raw._response.close()
        raw.close()
        return taken

    def close(self) -> None:
        """Close idle connections."""
        self.api.close()


def _share_connections(api: Any) -> None:
    """Let all requests use the same few connections.

    The SDK keeps a pool for each URL it was asked for, most of which name one container; and it
    closes the oldest of them while another thread may be about to use it.
    """
    adapter = api.get_adapter(api.base_url)
    find = adapter.get_connection
    adapter.get_connection = lambda _, proxies=None: find(api.base_url, proxies)


def _said(error: Any) -> str:
    text = str(error.explanation or error).strip().splitlines()
    return (text[0] if text else "it gives no reason").rstrip(".")


def _unreachable(host: str, error: Exception) -> str:
    text = str(error)
    if "Permission denied" in text:
        return (
            f"This user may not use the container engine at {host}: add the user to its group "
            "(usermod -aG docker USER), or point DOCKER_HOST at an engine of its own "
            "(rootless Docker or Podman)."
        )
    return (
        f"No container engine answers at {host}: start Docker, or set DOCKER_HOST "
        "(for Podman: unix:///run/podman/podman.sock after `podman system service -t 0`)."
    )


_lock = threading.Lock()


@cache
def _connect(host: str, process: int) -> Engine:
    del process  # a forked child needs connections of its own
    return Engine(host)


def connect() -> Engine:
    """The engine of ``DOCKER_HOST``, connected once in this process.

    Raises:
        SandboxError: there is none; says what to do.
    """
    with _lock:
        return _connect(os.environ.get("DOCKER_HOST") or DEFAULT_HOST, os.getpid())
