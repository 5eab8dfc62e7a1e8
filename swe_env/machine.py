"""Where and from what a figure was made: processor, cores, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """What ran it, as plain data; `packages` are the distributions whose versions matter.

    Memory in 10^9 bytes; ``load`` is the number of processes that wanted a processor in the last
    1, 5 and 15 minutes.

    Raises:
        importlib.metadata.PackageNotFoundError: one of `packages` is not installed.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "tools": {tool: _said(tool, "--version") for tool in ("git", "bwrap")},
        "commit": commit(),
        "user": "root" if os.geteuid() == 0 else "ordinary",
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout this code runs from, ``-dirty`` if it was changed, or empty."""
    folder = str(Path(__file__).parent)
    return _said(
        "git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"
    )


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().removeprefix("git version ").removeprefix("bubblewrap ")
