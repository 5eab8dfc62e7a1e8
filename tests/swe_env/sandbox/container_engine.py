"""A container engine of the tests' own: started on a private socket and folder, and removed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USE = "SWE_ENV_TEST_DOCKER_HOST"
"""Names an engine to run these tests on instead, for example Podman's."""
_START_SECONDS = 30.0
_MEMORY = Path("/dev/shm")
_ROOM = 2 << 30


class NoEngine(Exception):
    """Why there is none."""


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """Its address; raises NoEngine with the exact reason."""
    if given := os.environ.get(USE):
        yield given
        return
    if shutil.which("dockerd") is None:
        raise NoEngine(f"dockerd is not installed (apt-get install docker.io), and {USE} not set")
    if os.geteuid() != 0:
        raise NoEngine(f"starting dockerd needs root; {USE} can name a running engine")
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM:
        folder = Path(tempfile.mkdtemp(prefix="swe-env-engine-", dir=_MEMORY))
    host = f"unix://{folder}/docker.sock"
    log = folder / "log"
    command = ["dockerd", "-H", host, "--data-root", f"{folder}/data"]
    command += ["--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    command += ["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false"]
    command += ["--storage-driver=overlay2"]
    with log.open("wb") as file:
        daemon = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        _await(daemon, folder / "docker.sock", log)
        yield host
    finally:
        daemon.terminate()
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        _unmount(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _await(daemon: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            lines = log.read_text("utf-8", "replace").strip().splitlines()
            raise NoEngine(f"dockerd does not start here: {lines[-1] if lines else 'no reason'}")
        with socket.socket(socket.AF_UNIX) as probe:
            if path.exists() and probe.connect_ex(str(path)) == 0:
                probe.settimeout(5)
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                if b"200 OK" in probe.recv(100):
                    return
        time.sleep(0.05)
    raise NoEngine(f"dockerd did not answer within {_START_SECONDS:g} s")


def _unmount(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
