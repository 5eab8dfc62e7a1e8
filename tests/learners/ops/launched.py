"""Starts a module of these tests in two processes that talk over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def two_processes(module: str, told: Path) -> Any:
    """What the first of two processes that run `module` wrote to the file `told`, as JSON."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", module, str(told),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(told.read_text())
