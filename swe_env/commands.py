"""`swe doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import platform
import shutil
import sys
from typing import Annotated

import typer

from swe_env import __version__
from swe_env.cache import cache_dir
from swe_env.sandbox import get, sandboxes


def register(app: typer.Typer) -> None:
    """Mount this module's commands."""
    app.command()(doctor)


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say which sandboxes work here and what the others need."""
    report = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cache": str(cache_dir()),
        "git": shutil.which("git") or "missing: install git",
        "sandboxes": {name: get(name).available() or "ok" for name in sandboxes},
    }
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
        return
    for key, value in report.items():
        if isinstance(value, dict):
            for name, state in value.items():
                typer.echo(f"{key[:-2]} {name}: {state}")
        else:
            typer.echo(f"{key}: {value}")
