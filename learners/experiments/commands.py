"""`swe demo`, `swe demo-adapter` and `swe experiments`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Mount this module's commands."""
    app.command()(demo)
    app.command()(demo_adapter)
    experiments = typer.Typer(help="Experiments with a known answer.", no_args_is_help=True)
    experiments.command("tool-mdp")(tool_mdp)
    app.add_typer(experiments, name="experiments")


def demo(
    out: Annotated[Path, typer.Option(help="Folder; run again to continue.")] = Path("runs/demo"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any of the demo's settings, NAME=VALUE; repeatable."),
    ] = None,
) -> None:
    """The whole loop: real packages, rollouts, EntroPO, N attempts before and after, a report."""
    from learners.experiments.demo import run_demo

    run_demo(out, _demo_settings(settings or []))


def demo_adapter(
    out: Annotated[Path, typer.Option(help="Folder; run again to continue.")] = Path(
        "runs/demo-adapter"
    ),
) -> None:
    """Train the SFT adapter that the demo starts from; about an hour on 2 cores."""
    from learners.experiments.adapter import make_adapter

    typer.echo(str(make_adapter(out)))


def tool_mdp(
    out: Annotated[Path, typer.Option(help="Folder; run again to continue.")] = Path(
        "runs/tool-mdp"
    ),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, NAME=VALUE (seeds, steps …); repeatable."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread; one a core if unset.")
    ] = None,
) -> None:
    """Every loss against the closed-form optimum of an MDP that can be enumerated."""
    from agents.rollouts.commands import parse_options
    from learners.experiments.tool_mdp import Settings, run_tool_mdp
    from swe_env.errors import ConfigError

    options = parse_options(settings or [])
    unknown = sorted(set(options) - set(Settings.__dataclass_fields__))
    if unknown:
        known = ", ".join(Settings.__dataclass_fields__)
        raise ConfigError(f"The tool-MDP has no setting {unknown[0]!r}; it has: {known}.")
    typer.echo(str(run_tool_mdp(out, Settings(**options), workers=workers)))


def _demo_settings(pairs: list[str]) -> Any:
    from agents.rollouts.commands import parse_options
    from learners.experiments.demo import DemoSettings
    from swe_env.errors import ConfigError

    options = parse_options(pairs)
    unknown = sorted(set(options) - set(DemoSettings.__dataclass_fields__))
    if unknown:
        known = ", ".join(DemoSettings.__dataclass_fields__)
        raise ConfigError(f"The demo has no setting {unknown[0]!r}; it has: {known}.")
    return DemoSettings(**options)
