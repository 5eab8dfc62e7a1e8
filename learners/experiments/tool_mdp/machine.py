"""Where and from what a result was made."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from learners.training.card import commit


def machine() -> dict[str, Any]:
    """Processor, cores, versions and commit, as plain data."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "machine": {
            "processor": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        "commit": commit() or None,
    }
