"""`swe run`, `swe replay`, `swe regrade`: roll a policy out on tasks, and do so again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from agents.rollouts import options
from agents.rollouts.report import RolloutReport
from swe_env.errors import ConfigError, InfrastructureError
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Task

if TYPE_CHECKING:
    from agents.rollouts.again import Difference


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
    workers: options.Workers = 1,
    buffer: Annotated[
        str | None, typer.Option(help="Replay buffer to append to: a folder or an fsspec URL.")
    ] = None,
    seed: options.Seed = 0,
    policy_option: options.PolicyOption = None,
    env_option: Annotated[
        list[str] | None, typer.Option("--env-option", "-e", help="NAME=VALUE, repeatable.")
    ] = None,
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
        int | None, typer.Option(min=1, help="Environments working at once; with Ray in a worker.")
    ] = None,
    executor: Annotated[str, typer.Option(help="threads, or ray for many machines.")] = "threads",
    ray_address: Annotated[
        str | None, typer.Option(help="The Ray cluster.", show_default="what ray.init() finds")
    ] = None,
    ray_episodes: Annotated[
        int | None,
        typer.Option(min=1, help="Episodes in flight in a Ray worker.", show_default="8"),
    ] = None,
    ray_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a Ray worker.", show_default="0")
    ] = None,
    json: options.Json = False,
) -> None:
    """Run a policy on tasks, several attempts each; the same command again continues."""
    from agents.policies import PolicySpec
    from agents.rollouts.budget import JobBudget
    from agents.rollouts.engine import run_rollouts
    from agents.rollouts.on_ray import RayExecutor
    from agents.rollouts.progress import LiveProgress

    given = {"address": ray_address, "episodes": ray_episodes, "gpus": ray_gpus}
    given = {name: value for name, value in given.items() if value is not None}
    on_ray = executor == "ray"
    if given and not on_ray:
        raise ConfigError(
            f"--ray-{next(iter(given))} is for --executor ray; this job runs in threads."
        )
    ray = RayExecutor(**given)  # type: ignore[arg-type]
    person = not on_ray and options.plays_here(policy)
    # Ray prints its cluster's messages on stdout, where only the report belongs.
    with redirect_stdout(sys.stderr) if on_ray else nullcontext():
        report = run_rollouts(
            PolicySpec(policy, parse_options(policy_option or ())),
            tasks,
            attempts=attempts,
            workers=1 if person else workers,
            out=out,
            buffer=buffer,
            env_kwargs=parse_options(env_option or ()),
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
            progress=None if person else LiveProgress(policy),
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


_Source = Annotated[str, typer.Argument(help="Buffer (folder or URL), or a .json(l) file.")]
_Tasks = Annotated[str, typer.Option(help="The task source that the trajectories were run on.")]
_Sandbox = Annotated[str | None, typer.Option(help="Where to run.", show_default="as recorded")]
_Id = Annotated[str, typer.Option("--id", help="Only the trajectory whose id starts so.")]


def replay(
    source: _Source,
    tasks: _Tasks,
    trajectory: _Id = "",
    sandbox: _Sandbox = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Take recorded actions again and say where the answers differ.

    Records of attempts that the machinery failed before they began are left out. Exit code 1: some
    answer differs; 3: the machinery failed for some record.
    """
    from agents.rollouts import again

    differing = 0
    counts = _Counts()
    for recorded, task in _pairs(source, tasks, trajectory):
        if recorded.failure is not None and not recorded.agent_steps:
            counts.left_out += 1
            continue
        with counts.counting(recorded):
            found = again.replay(recorded, task, sandbox=sandbox)
            differing += bool(found)
            _tell_differences(recorded, found, json=json)
    counts.tell(f"{counts.done - differing} of {counts.done} came out the same.", json=json)
    if differing:
        raise typer.Exit(1)


def regrade(
    source: _Source,
    tasks: _Tasks,
    trajectory: _Id = "",
    sandbox: _Sandbox = None,
    out: Annotated[
        str | None, typer.Option(help="Buffer for the regraded records; what it has is skipped.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Grade stored patches again and say which verdicts changed; the source stays as it is.

    Records without a verdict are left out. Exit code 3: the machinery failed for some record.
    """
    from agents.rollouts import again
    from swe_env.replay import ReplayBuffer
    from swe_env.replay.storage import open_storage

    if out is not None and open_storage(out).url == open_storage(source).url:
        raise ConfigError(f"--out {out} is the source, which stays as it is: give another buffer.")
    changed = 0
    counts = _Counts()
    with ReplayBuffer(out) if out is not None else nullcontext() as buffer:
        for recorded, task in _pairs(source, tasks, trajectory):
            known = buffer is not None and buffer.has(recorded.trajectory_id)
            if recorded.report is None or known:
                counts.left_out += 1
                continue
            with counts.counting(recorded):
                graded = again.regrade(recorded, task, sandbox=sandbox)
                changed += graded.resolved != recorded.resolved
                if buffer is not None and not buffer.has(graded.trajectory_id):
                    buffer.append(graded)
                _tell_verdict(recorded, graded, json=json)
    counts.tell(f"{counts.done} graded again, {changed} verdicts changed.", json=json)


@dataclass(slots=True)
class _Counts:
    """What came of the records that a command went through."""

    done: int = 0
    left_out: int = 0
    failed: int = 0

    @contextmanager
    def counting(self, record: Trajectory) -> Iterator[None]:
        """Count a record as done, or, where the machinery fails, tell so and go on."""
        try:
            yield
            self.done += 1
        except InfrastructureError as error:
            self.failed += 1
            typer.echo(f"{_name(record)}: {error}", err=True)

    def tell(self, line: str, *, json: bool) -> None:
        """Print the last line, and leave with code 3 if the machinery failed."""
        more = {"left out": self.left_out, "could not be done": self.failed}
        parts = [line, *(f"{count} {what}." for what, count in more.items() if count)]
        if not json:
            typer.echo(" ".join(parts))
        if self.failed:
            raise typer.Exit(3)


def _name(record: Trajectory) -> str:
    return f"{record.instance_id} {record.trajectory_id[:12]}"


def _tell_differences(record: Trajectory, found: Sequence[Difference], *, json: bool) -> None:
    if json:
        row = {"id": record.trajectory_id, "differences": found}
        sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    if not found:
        typer.echo(f"{_name(record)}: the same")
    for item in found:
        typer.echo(
            f"{_name(record)}: step {item.step}, {item.what}\n- {item.recorded}\n+ {item.now}"
        )


def _tell_verdict(record: Trajectory, graded: Trajectory, *, json: bool) -> None:
    row = {"id": record.trajectory_id, "before": record.resolved, "now": graded.resolved}
    if json:
        sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    elif graded.resolved != record.resolved:
        verdict = "resolved" if graded.resolved else "not resolved"
        typer.echo(f"{_name(record)}: now {verdict}")


def _pairs(source: str, spec: str, prefix: str) -> Iterator[tuple[Trajectory, Task]]:
    """The trajectories wanted, each with its task.

    Raises:
        ConfigError: there is none.
    """
    from agents.viewer.commands import load
    from swe_env.tasks import find
    from swe_env.tasks import load as load_tasks

    known = load_tasks(spec)
    count = 0
    for trajectory in load(source):
        if trajectory.trajectory_id.startswith(prefix):
            count += 1
            yield trajectory, find(known, trajectory.instance_id)
    if not count:
        wanted = f"no trajectory whose id starts with {prefix!r}" if prefix else "no trajectory"
        raise ConfigError(f"{source} holds {wanted}.")


def summary(report: RolloutReport) -> str:
    """A run in a few lines."""
    scored = len(report.scored)
    share = f" ({report.resolved / scored:.1%})" if scored else ""
    lines = [f"{report.resolved} of {scored} scored attempts resolved{share}."]
    if report.truncations:
        lines.append("Cut off by: " + _listed(report.truncations) + ".")
    if report.invalid:
        lines.append(f"Malformed replies: {report.invalid}.")
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
