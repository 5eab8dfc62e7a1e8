"""`swe run`: roll a policy out on tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agents.rollouts.report import RolloutReport
from swe_env.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Mount this module's commands."""
    app.command("run")(run)


def run(
    policy: Annotated[str, typer.Option(help="Policy: a name or package.module:Class.")],
    tasks: Annotated[str, typer.Option(help="Task source: quickstart:train, jsonl:PATH, …")],
    out: Annotated[Path, typer.Option(help="The job's folder; run again to continue it.")],
    attempts: Annotated[int, typer.Option(min=1, help="Episodes per task.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Episodes in flight.")] = 1,
    buffer: Annotated[Path | None, typer.Option(help="Replay buffer to append to.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    policy_option: Annotated[
        list[str] | None, typer.Option("--policy-option", "-p", help="NAME=VALUE, repeatable.")
    ] = None,
    env_option: Annotated[
        list[str] | None, typer.Option("--env-option", "-e", help="NAME=VALUE, repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Sampled tokens per episode; 0: any.")] = 0,
    max_seconds: Annotated[float, typer.Option(help="Seconds per episode; 0: any.")] = 0.0,
    retries: Annotated[int, typer.Option(help="Trials after infrastructure failures.")] = 2,
    cpu_slots: Annotated[int | None, typer.Option(help="Environments working at once.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run a policy on tasks, several attempts each; the same command again continues."""
    from agents.policies import make_policy
    from agents.rollouts.engine import run_rollouts
    from agents.rollouts.episode import Budget
    from agents.rollouts.progress import LiveProgress

    report = run_rollouts(
        make_policy(policy, **parse_options(policy_option or ())),
        tasks,
        attempts=attempts,
        workers=workers,
        out=out,
        buffer=buffer,
        env_kwargs=parse_options(env_option or ()),
        seed=seed,
        budget=Budget(tokens=max_tokens, seconds=max_seconds),
        retries=retries,
        cpu_slots=cpu_slots,
        progress=LiveProgress(policy),
    )
    if json:
        sys.stdout.write(msgspec.json.encode(report.to_dict()).decode() + "\n")
    else:
        typer.echo(summary(report))
    if report.interrupted:
        raise typer.Exit(130)
    if report.results and not report.scored:
        raise typer.Exit(3)


def summary(report: RolloutReport) -> str:
    """A run in a few lines."""
    scored = len(report.scored)
    share = f" ({report.resolved / scored:.1%})" if scored else ""
    lines = [f"{report.resolved} of {scored} scored attempts resolved{share}."]
    if report.truncations:
        lines.append("Cut off by: " + _listed(report.truncations) + ".")
    if report.failures:
        lines.append("Not scored, infrastructure failures: " + _listed(report.failures) + ".")
    if report.skipped:
        lines.append(f"{report.skipped} attempts were finished before.")
    if report.interrupted:
        lines.append("Interrupted: run the same command again to continue.")
    return "\n".join([*lines, f"Results are in {report.out}."])


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["temperature=0.7", "sandbox=process"]`` → values read as JSON, else as strings.

    Raises:
        ConfigError: a pair has no ``=``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"The option {pair!r} is not of the form NAME=VALUE.")
        try:
            found[name] = msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            found[name] = value
    return found


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
