"""Virtual environments for the tools that this project is compared with or proven against.

Each gets its own, made on first use under ``--venvs`` (kept between runs), with the packages that
`swe_env.replay` needs beside the peer's own, so that a peer's script can import both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("numpy", "msgspec", "zstandard", "fsspec", "wrapt")
REQUIREMENTS = {
    "minari": ("minari[hdf5,create]==0.5.4", "pillow", *OURS),
    "datasets": ("datasets==5.2.0", *OURS),
    "trl": ("trl==1.16.0", "torch==2.13.0", *OURS),
    "mini": ("mini-swe-agent==2.4.6",),
    "swebench": ("swebench==5.0.2",),
    "harbor": ("harbor==0.26.0",),
    "llamafactory": ("trl==1.16.0", "torch==2.13.0", "peft", "omegaconf", *OURS),
}
ALONE = {"llamafactory": ("llamafactory==0.9.5",)}
"""Installed without their dependencies: LLaMA-Factory pins versions of other years."""
STUBS = {"llamafactory": ("torchaudio",)}
"""Modules that are imported for other data than text, put there empty."""
PYTHON = {"harbor": "python3.12"}
"""Interpreter by peer, where this one's version won't do."""


def python(name: str, venvs: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing."""
    folder = venvs / name
    interpreter, done = folder / "bin" / "python", folder / ".installed"
    alone = ALONE.get(name, ())
    wanted = "\n".join((*REQUIREMENTS[name], *alone))
    if not done.exists() or done.read_text() != wanted:
        base = os.environ.get(f"PYTHON_{name.upper()}") or PYTHON.get(name) or sys.executable
        subprocess.run([base, "-m", "venv", str(folder)], check=True)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, *REQUIREMENTS[name]], check=True)
        if alone:
            subprocess.run([*pip, "--no-deps", *alone], check=True)
        for module in STUBS.get(name, ()):
            (next(folder.glob("lib/python*/site-packages")) / f"{module}.py").touch()
        done.write_text(wanted)
    return interpreter


def run(name: str, venvs: Path, *arguments: str, **environment: str) -> str:
    """What a script of this folder prints when the peer's interpreter runs it."""
    done = subprocess.run(
        [str(python(name, venvs)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **environment,
        },
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout
