"""`swe run`, `swe replay`, `swe regrade`: roll a policy out on tasks, and do so again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agents.rollouts.report import RolloutReport
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Task


def register(app: typer.Typer) -> None:
    """Mount this module's commands."""
    app.command("run")(run)
    app.command("replay")(replay)
    app.command("regrade")(regrade)


def run(
    policy: Annotated[str, typer.Option(help="Policy: a name or package.module:Class.")],
    tasks: Annotated[str, typer.Option(help="Task source: quickstart:train, jsonl:PATH, …")],
    out: Annotated[Path, typer.Option(help="The job's folder; run again to continue it.")],
    attempts: Annotated[int, typer.Option(min=1, help="Episodes per task.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Episodes in flight.")] = 1,
    buffer: Annotated[
        str | None, typer.Option(help="Replay buffer to append to: a folder or an fsspec URL.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    policy_option: Annotated[
        list[str] | None, typer.Option("--policy-option", "-p", help="NAME=VALUE, repeatable.")
    ] = None,
    env_option: Annotated[
        list[str] | None, typer.Option("--env-option", "-e", help="NAME=VALUE, repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Sampled tokens per episode; 0: any.")] = 0,
    max_seconds: Annotated[float, typer.Option(help="Seconds per episode; 0: any.")] = 0.0,
    max_cost: Annotated[float, typer.Option(help="Dollars per episode; 0: any.")] = 0.0,
    job_steps: Annotated[int, typer.Option(help="Steps of the whole job; 0: any.")] = 0,
    job_tokens: Annotated[int, typer.Option(help="Sampled tokens of the whole job; 0: any.")] = 0,
    job_seconds: Annotated[float, typer.Option(help="Seconds of this run; 0: any.")] = 0.0,
    job_cost: Annotated[float, typer.Option(help="Dollars of the whole job; 0: any.")] = 0.0,
    retries: Annotated[int, typer.Option(help="Trials after infrastructure failures.")] = 2,
    cpu_slots: Annotated[
        int | None, typer.Option(help="Environments working at once; with Ray in one worker.")
    ] = None,
    executor: Annotated[str, typer.Option(help="threads, or ray for many machines.")] = "threads",
    ray_address: Annotated[
        str | None, typer.Option(help="The Ray cluster. [default: what ray.init() finds]")
    ] = None,
    ray_episodes: Annotated[int, typer.Option(help="Episodes in flight in a Ray worker.")] = 8,
    ray_gpus: Annotated[float, typer.Option(help="GPUs of a Ray worker.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run a policy on tasks, several attempts each; the same command again continues."""
    from agents.policies import PolicySpec
    from agents.rollouts.budget import JobBudget
    from agents.rollouts.engine import run_rollouts
    from agents.rollouts.episode import Budget
    from agents.rollouts.on_ray import RayExecutor
    from agents.rollouts.progress import LiveProgress

    ray = RayExecutor(address=ray_address, episodes=ray_episodes, gpus=ray_gpus)
    on_ray = executor == "ray"
    # Ray prints its cluster's messages on stdout, where only the report belongs.
    with redirect_stdout(sys.stderr) if on_ray else nullcontext():
        report = run_rollouts(
            PolicySpec(policy, parse_options(policy_option or ())),
            tasks,
            attempts=attempts,
            workers=workers,
            out=out,
            buffer=buffer,
            env_kwargs=parse_options(env_option or ()),
            seed=seed,
            budget=Budget(tokens=max_tokens, seconds=max_seconds, cost=max_cost),
            job_budget=JobBudget(
                steps=job_steps, tokens=job_tokens, seconds=job_seconds, cost=job_cost
            ),
            retries=retries,
            cpu_slots=cpu_slots,
            progress=LiveProgress(policy),
            executor=ray if on_ray else executor,
        )
    finish(report, json)


def finish(report: RolloutReport, json: bool) -> None:
    """Print what came of a run, and leave with its exit code."""
    if json:
        sys.stdout.write(msgspec.json.encode(report.to_dict()).decode() + "\n")
    else:
        typer.echo(summary(report))
    if report.interrupted and not report.spent:
        raise typer.Exit(130)
    if report.results and not report.scored:
        raise typer.Exit(3)


_Source = Annotated[Path, typer.Argument(help="Buffer folder, or a .json or .jsonl file.")]
_Tasks = Annotated[str, typer.Option(help="The task source that the trajectories were run on.")]
_Sandbox = Annotated[str | None, typer.Option(help="Where to run. [default: as recorded]")]
_Id = Annotated[str, typer.Option("--id", help="Only the trajectory whose id starts so.")]


def replay(
    source: _Source,
    tasks: _Tasks,
    trajectory: _Id = "",
    sandbox: _Sandbox = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Take recorded actions again and say where the answers differ; exit code 1 if any does."""
    from agents.rollouts import again

    differing = count = 0
    for recorded, task in _pairs(source, tasks, trajectory):
        found = again.replay(recorded, task, sandbox=sandbox)
        count, differing = count + 1, differing + bool(found)
        name = f"{recorded.instance_id} {recorded.trajectory_id[:12]}"
        if json:
            row = {"id": recorded.trajectory_id, "differences": found}
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        elif not found:
            typer.echo(f"{name}: the same")
        for item in () if json else found:
            typer.echo(f"{name}: step {item.step}, {item.what}\n- {item.recorded}\n+ {item.now}")
    if not json:
        typer.echo(f"{count - differing} of {count} came out the same.")
    if differing:
        raise typer.Exit(1)


def regrade(
    source: _Source,
    tasks: _Tasks,
    trajectory: _Id = "",
    sandbox: _Sandbox = None,
    out: Annotated[Path | None, typer.Option(help="Buffer for the regraded records.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Grade stored patches again and say which verdicts changed; the source stays as it is."""
    from agents.rollouts import again
    from swe_env.replay import ReplayBuffer

    buffer = ReplayBuffer(out) if out is not None else None
    count = changed = 0
    for recorded, task in _pairs(source, tasks, trajectory):
        graded = again.regrade(recorded, task, sandbox=sandbox)
        count, changed = count + 1, changed + (graded.resolved != recorded.resolved)
        if buffer is not None:
            buffer.append(graded)
        row = {"id": recorded.trajectory_id, "before": recorded.resolved, "now": graded.resolved}
        if json:
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        elif graded.resolved != recorded.resolved:
            verdict = "resolved" if graded.resolved else "not resolved"
            typer.echo(f"{recorded.instance_id} {recorded.trajectory_id[:12]}: now {verdict}")
    if buffer is not None:
        buffer.close()
    if not json:
        typer.echo(f"{count} graded again, {changed} verdicts changed.")


def _pairs(source: Path, spec: str, prefix: str) -> Iterator[tuple[Trajectory, Task]]:
    """The trajectories wanted, each with its task."""
    from agents.viewer.commands import load
    from swe_env.tasks import find
    from swe_env.tasks import load as load_tasks

    known = load_tasks(spec)
    for trajectory in load(source):
        if trajectory.trajectory_id.startswith(prefix):
            yield trajectory, find(known, trajectory.instance_id)


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
    if report.spent:
        lines.append(
            f"The job's budget of {report.spent} is spent: run the same command with a larger one "
            "to continue."
        )
    elif report.interrupted:
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
