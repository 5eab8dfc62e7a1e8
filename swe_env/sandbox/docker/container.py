"""Start one container, confined, and run trusted commands in it."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swe_env.errors import SandboxError
from swe_env.sandbox.base import Limits
from swe_env.sandbox.docker import owner, scripts
from swe_env.sandbox.docker.engine import Engine
from swe_env.sandbox.docker.listener import Listener
from swe_env.sandbox.output import Capture

_SPARE_PROCESSES = 16
"""What the sandbox itself may need beside the agent's: its shells, and the engine's own helpers."""
_KERNEL = "/sys/kernel"
"""Tells of this machine, and is not among what engines hide by themselves."""
# Podman would copy what is to be hidden into the empty file system.
_EMPTY = {False: "ro,size=4k,mode=755", True: "ro,size=4k,mode=755,notmpcopyup"}
_without_quota: set[str] = set()
"""Engines that were asked for a quota and have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a container is made of."""

    image: str
    env: Mapping[str, str]
    limits: Limits
    network: bool = False
    user: str = ""
    """``uid`` or ``uid:gid`` of every command; empty for the image's own."""
    capabilities: tuple[str, ...] = ()
    """Kept of those that containers have; none by default."""
    binds: Mapping[str, str] = field(default_factory=dict)
    """Read-only: path inside → folder on the engine's machine."""
    hidden: tuple[str, ...] = ()
    """Folders inside that are found empty."""
    role: str = "sandbox"


class Container:
    """A running container; it ends with this process, or at `close`."""

    def __init__(self, engine: Engine, setup: Setup) -> None:
        """Start it.

        Raises:
            SandboxError: it cannot be; the engine's reason.
        """
        self.engine = engine
        self.setup = setup
        self._line: socket.socket | None = None
        self.id = self._create()
        try:
            self._line = engine.lifeline(self.id)
            with engine.doing(f"start a container of {setup.image}"):
                engine.api.start(self.id)
        except BaseException:
            self.close()
            raise

    def _create(self) -> str:
        engine, config = self.engine, _config(self.setup, self.engine)
        if engine.host not in _without_quota and _has_quota(engine):
            host = {**config["HostConfig"], "StorageOpt": {"size": str(self.setup.limits.disk)}}
            with contextlib.suppress(SandboxError), engine.doing("limit a container's disk"):
                made = engine.api.create_container_from_config({**config, "HostConfig": host})
                return str(made["Id"])
            _without_quota.add(engine.host)
        with engine.doing(f"make a container of {self.setup.image}"):
            return str(engine.api.create_container_from_config(config)["Id"])

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        user: str = "",
        limit: int = 1 << 20,
    ) -> tuple[int, str]:
        """Run a trusted command to its end: (exit code, output)."""
        capture = Capture(limit)
        token = secrets.token_hex(16)
        listener = Listener(token, capture)
        _, stream = self.engine.exec(
            self.id, scripts.wrapped(list(argv), "/", channel=False), user=user
        )
        try:
            stream.queue(token.encode() + b"\n" + stdin, end=True)
            how = stream.pump(listener, until=time.monotonic() + timeout)
        finally:
            stream.close()
        listener.flush()
        if how == "late":
            raise SandboxError(f"{argv[0]} did not end within {timeout:g} s in a container.")
        return -1 if listener.code is None else listener.code, capture.text()

    def close(self) -> None:
        """Kill and remove it; safe to call twice."""
        owner.remove(self.engine, self.id)
        if self._line is not None:
            self._line.close()
            self._line = None

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _config(setup: Setup, engine: Engine) -> dict[str, Any]:
    limits = setup.limits
    host: dict[str, Any] = {
        "AutoRemove": True,
        "NetworkMode": "default" if setup.network else "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "CapDrop": ["ALL"],
        "CapAdd": list(setup.capabilities),
        "SecurityOpt": ["no-new-privileges"],
        "Memory": limits.memory,
        "MemorySwap": limits.memory,
        "PidsLimit": limits.processes + _SPARE_PROCESSES,
        "Ulimits": [
            _ulimit("core", 0),
            # One file larger than the whole disk limit need not be waited for.
            _ulimit("fsize", min(limits.file_size, limits.disk)),
        ],
        "Mounts": [
            {"Type": "bind", "Source": folder, "Target": inside, "ReadOnly": True}
            for inside, folder in setup.binds.items()
        ],
        "Tmpfs": dict.fromkeys((_KERNEL, *setup.hidden), _EMPTY[engine.podman]),
        "LogConfig": {"Type": "none", "Config": {}},
    }
    return {
        "Image": setup.image,
        "Entrypoint": scripts.PATIENT[:1],
        "Cmd": scripts.PATIENT[1:],
        "Env": [f"{name}={value}" for name, value in setup.env.items()],
        "User": setup.user,
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Labels": owner.labels(setup.role),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "NetworkDisabled": not setup.network,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _ulimit(name: str, value: int) -> dict[str, object]:
    return {"Name": name, "Soft": value, "Hard": value}


def _has_quota(engine: Engine) -> bool:
    """Whether the engine's storage may be able to limit one container's disk."""
    status = {row[0]: row[1] for row in engine.info.get("DriverStatus") or [] if len(row) == 2}
    driver = engine.info.get("Driver", "")
    return driver in ("btrfs", "zfs") or status.get("Backing Filesystem") == "xfs"
