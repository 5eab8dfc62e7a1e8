"""`swe branch`: fresh samples from the middle of a recorded episode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.rollouts import options


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
        str | None, typer.Option(help="Buffer to append to.", show_default="OUT/buffer")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Task source.", show_default="the recorded one")
    ] = None,
    workers: options.Workers = 8,
    seed: options.Seed = 0,
    policy_option: options.PolicyOption = None,
    max_tokens: options.MaxTokens = 0,
    max_seconds: options.MaxSeconds = 0.0,
    max_cost: options.MaxCost = 0.0,
    repeats: options.Repeats = None,
    errors: options.Errors = None,
    failures: options.Failures = None,
    invalid: options.Invalid = None,
    job_steps: options.JobSteps = 0,
    job_tokens: options.JobTokens = 0,
    job_seconds: options.JobSeconds = 0.0,
    job_cost: options.JobCost = 0.0,
    retries: options.Retries = 2,
    cpu_slots: Annotated[
        int | None, typer.Option(min=1, help="Environments working at once.")
    ] = None,
    sandbox: Annotated[
        str | None, typer.Option(help="Where to run.", show_default="as recorded")
    ] = None,
    json: options.Json = False,
) -> None:
    """Continue a recorded episode N times from its state after step K; again, to go on."""
    from agents.policies import make_policy
    from agents.rollouts.branching import find_trajectory, run_branches
    from agents.rollouts.budget import JobBudget
    from agents.rollouts.commands import finish, parse_options
    from agents.rollouts.progress import LiveProgress
    from swe_env.tasks import find, load

    person = options.plays_here(policy)
    parent = find_trajectory(buffer, trajectory)
    report = run_branches(
        parent,
        at_step,
        n,
        policy=make_policy(policy, **parse_options(policy_option or ())),
        task=find(load(tasks), parent.instance_id) if tasks else None,
        out=out,
        buffer=into or out / "buffer",
        workers=1 if person else workers,
        seed=seed,
        budget=options.episode_budget(
            max_tokens,
            max_seconds,
            max_cost,
            person=person,
            repeats=repeats,
            errors=errors,
            failures=failures,
            invalid=invalid,
        ),
        job_budget=JobBudget(
            steps=job_steps, tokens=job_tokens, seconds=job_seconds, cost=job_cost
        ),
        retries=retries,
        cpu_slots=cpu_slots,
        sandbox=sandbox,
        progress=None if person else LiveProgress(policy),
    )
    finish(report, json)
