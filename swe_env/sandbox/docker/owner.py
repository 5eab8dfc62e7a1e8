"""Who a container or image belongs to, and removing what belongs to programs that have ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from functools import cache
from pathlib import Path

from swe_env.errors import SandboxError
from swe_env.sandbox.docker.engine import Engine

PREFIX = "swe-env"
IMAGES = "localhost/swe-env"
"""Where our images are; with the registry's name, without which Podman looks elsewhere."""
OWNER = "swe-env.owner"
SESSION = "swe-env.session"


def labels(role: str) -> dict[str, str]:
    """Labels for something that must not outlive this process."""
    return {f"{PREFIX}.role": role, OWNER: _owner(os.getpid()), SESSION: _session(os.getpid())}


def kept_labels(role: str, **more: str) -> dict[str, str]:
    """Labels for something that later runs use again; takes away what `labels` gave."""
    named = {f"{PREFIX}.{name}": value for name, value in more.items()}
    return {f"{PREFIX}.role": role, OWNER: "", SESSION: "", **named}


@cache
def _session(pid: int) -> str:
    del pid  # a forked child is a session of its own
    return secrets.token_hex(8)


def _owner(pid: int) -> str:
    """Names a process for good: machine, boot, pid namespace, number, start time."""
    return f"{_place()}:{pid}:{_start_time(pid)}"


@cache
def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return stat[stat.rindex(b")") + 2 :].split()[19].decode()


def abandoned(owner: str) -> bool:
    """Whether this owner was a process of this machine, boot and pid namespace, and has ended."""
    place, pid, started = owner.rsplit(":", 2) if owner.count(":") >= 2 else ("", "", "")
    return place == _place() and pid.isdigit() and _start_time(int(pid)) != started


def reap(engine: Engine) -> None:
    """Remove the containers and images of programs that ended without doing it."""
    with contextlib.suppress(SandboxError):
        with engine.doing("list containers"):
            found = engine.api.containers(all=True, filters={"label": OWNER})
        for container in found:
            if abandoned(container["Labels"].get(OWNER, "")):
                remove(engine, container["Id"])
        with engine.doing("list images"):
            images = engine.api.images(filters={"label": OWNER})
        for image in images:
            if abandoned((image["Labels"] or {}).get(OWNER, "")):
                for tag in image["RepoTags"] or [image["Id"]]:
                    remove_image(engine, tag)


def remove(engine: Engine, container: str) -> None:
    """Kill and remove a container and its anonymous volumes; one that is gone is fine."""
    with contextlib.suppress(SandboxError), engine.doing("remove a container"):
        engine.api.remove_container(container, force=True, v=True)


def remove_image(engine: Engine, tag: str) -> None:
    """Remove an image, as far as nothing else is made of it."""
    with contextlib.suppress(SandboxError), engine.doing("remove an image"):
        engine.api.remove_image(tag, force=True)
