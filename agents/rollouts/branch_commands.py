"""`swe branch`: fresh samples from the middle of a recorded episode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Mount this module's command."""
    app.command("branch")(branch)


def branch(
    buffer: Annotated[str, typer.Option(help="Buffer that holds the trajectory.")],
    trajectory: Annotated[str, typer.Option(help="Its id, or how that begins.")],
    at_step: Annotated[int, typer.Option(help="Agent steps that are kept; 0: none.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Branches; may be raised later.")],
    policy: Annotated[str, typer.Option(help="Policy: a name or package.module:Class.")],
    out: Annotated[Path, typer.Option(help="The job's folder; run again to continue it.")],
    into: Annotated[
        str | None, typer.Option(help="Buffer to append to. [default: OUT/buffer]")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Task source. [default: the recorded one]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Branches in flight.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    policy_option: Annotated[
        list[str] | None, typer.Option("--policy-option", "-p", help="NAME=VALUE, repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Sampled tokens per branch; 0: any.")] = 0,
    max_seconds: Annotated[float, typer.Option(help="Seconds per branch; 0: any.")] = 0.0,
    sandbox: Annotated[
        str | None, typer.Option(help="Where to run. [default: as recorded]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Continue a recorded episode N times from its state after step K; again, to go on."""
    from agents.policies import make_policy
    from agents.rollouts.branching import find_trajectory, run_branches
    from agents.rollouts.commands import finish, parse_options
    from agents.rollouts.episode import Budget
    from agents.rollouts.progress import LiveProgress
    from swe_env.tasks import find, load

    parent = find_trajectory(buffer, trajectory)
    report = run_branches(
        parent,
        at_step,
        n,
        policy=make_policy(policy, **parse_options(policy_option or ())),
        task=find(load(tasks), parent.instance_id) if tasks else None,
        out=out,
        buffer=into or out / "buffer",
        workers=workers,
        seed=seed,
        budget=Budget(tokens=max_tokens, seconds=max_seconds),
        sandbox=sandbox,
        progress=LiveProgress(policy),
    )
    finish(report, json)
