"""`swe`: one command line; mounts the sub-commands of all three packages.

The packages above this one are looked up by name when the command line starts, so the layers stay
one-way and a machine with `swe_env` alone has the commands that work there.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib import util
from typing import Any

import typer
from typer.core import TyperGroup

from swe_env import disk
from swe_env.errors import ConfigError, InfrastructureError, SweError

COMMANDS = (
    "swe_env.tasks.commands",
    "swe_env.grading.commands",
    "swe_env.replay.commands",
    "swe_env.commands",
    "agents.rollouts.commands",
    "agents.rollouts.branch_commands",
    "agents.viewer.commands",
    "learners.training.commands",
    "learners.experiments.commands",
)
"""Modules that each hold `register(app: typer.Typer)`."""


class _Commands(TyperGroup):
    """Says how to go on after Ctrl-C, which typer would end in silence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            _say_interrupted(stop)
            raise typer.Exit(130) from stop


def build() -> typer.Typer:
    """The command line with every sub-command that can be had here.

    Raises:
        ConfigError: another distribution's package named `agents` hides ours.
    """
    app = typer.Typer(
        name="swe",
        cls=_Commands,
        help="Train coding agents that stay diverse.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    _check_agents()
    for name in COMMANDS:
        if util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name).register(app)
    return app


def main() -> None:
    """Run `swe`; a known failure is one sentence on stderr and exit code 2.

    3 is the code where the infrastructure failed, 1 where a disk could not be written to, 130
    after Ctrl-C.
    """
    # OpenMP's threads spin while they wait, which starves the tests that run beside a local model
    # (prefill 5 times slower on 2 busy cores). Read when torch is loaded, so set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # `--policy my_module:Mine` means the folder one stands in, as with `python -m`.
    sys.path.insert(0, "")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        build()()
    except SweError as error:
        print(f"swe: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, InfrastructureError) else 2)
    except OSError as error:
        if not (said := disk.refusal(error)):
            raise
        where = error.filename or "a file"
        print(
            f"swe: {where} could not be written ({said}): free space there, or choose another "
            "folder, and run the same command again.",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt as stop:
        _say_interrupted(stop)
        sys.exit(130)


def _say_interrupted(stop: KeyboardInterrupt) -> None:
    """A command that goes on otherwise says so in the exception it raises."""
    how = str(stop) or "run the same command again to continue"
    print(f"swe: interrupted; {how}.", file=sys.stderr)


def _check_agents() -> None:
    found = util.find_spec("agents")
    if found is None:
        return
    module = importlib.import_module("agents")
    if getattr(module, "PROJECT", "") != "swe-env":
        raise ConfigError(
            f"`import agents` finds {found.origin}, which is not part of swe-env (the package "
            "openai-agents installs that name too): uninstall it or use a separate virtual "
            "environment."
        )


if __name__ == "__main__":
    main()
