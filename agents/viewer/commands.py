"""`swe view` and `swe report`: look at recorded trajectories."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay.trajectory import Trajectory


def register(app: typer.Typer) -> None:
    """Mount this module's commands."""
    app.command()(view)
    app.command()(report)


def view(
    source: Annotated[str, typer.Argument(help="Buffer folder or URL, or a .json or .jsonl file.")],
    trajectory: Annotated[
        str, typer.Option("--id", help="Show the trajectory whose id starts so.")
    ] = "",
    task: Annotated[str, typer.Option(help="Only this instance id.")] = "",
    html: Annotated[Path | None, typer.Option(help="Write a page instead of printing.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Don't shorten long texts.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List a buffer's trajectories, or show one step by step."""
    from agents.viewer.build import attempt_of
    from agents.viewer.html import render_trajectories
    from agents.viewer.terminal import TERMINAL_CHARS, print_list, print_trajectory

    found = _matching(load(source), task, trajectory)
    if html is not None:
        name = source.rstrip("/").rpartition("/")[2]
        typer.echo(str(render_trajectories(found, html, title=f"Trajectories of {name}")))
        return
    if json:
        for item in found:
            row = item.to_dict() if trajectory else msgspec.to_builtins(attempt_of(item))
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    items = list(found)
    if len(items) == 1:
        print_trajectory(items[0], max_chars=0 if full else TERMINAL_CHARS)
    else:
        print_list(items)


def report(
    arms: Annotated[
        list[str], typer.Argument(help="NAME=BUFFER (folder or URL), the baseline first.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "Rollouts",
    metrics: Annotated[
        list[str] | None, typer.Option(help="NAME=METRICS.jsonl of a training; repeatable.")
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help="Selectors to evaluate; repeatable. [default: hybrid]")
    ] = None,
    show: Annotated[int, typer.Option(help="Trajectories shown step by step.", min=0)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the intervals.")] = 0,
) -> None:
    """Write a self-contained HTML report that compares arms on their tasks."""
    from agents.viewer.build import report_from_buffers
    from agents.viewer.html import render_report

    data = report_from_buffers(
        {name: load(source) for name, source in _pairs(arms).items()},
        title=title,
        facts={"command": " ".join(sys.argv)},
        training={name: read_metrics(Path(path)) for name, path in _pairs(metrics or []).items()},
        selector_names=selector or ["hybrid"],
        show=show,
        seed=seed,
    )
    typer.echo(str(render_report(data, out)))


def load(source: str | Path) -> Iterator[Trajectory]:
    """Trajectories of a buffer, a JSON file (one, or a list) or a JSON-lines file.

    Args:
        source: a path, or a buffer's URL.

    Raises:
        ConfigError: there is nothing at `source`, or a folder that is no buffer.
        ReplayError: it does not hold trajectories.
    """
    path = Path(source)
    if path.is_dir() or "://" in str(source):
        from swe_env.replay import ReplayBuffer

        with ReplayBuffer(source, create=False) as buffer:
            yield from buffer
    elif path.is_file():
        for data in _records(path):
            yield Trajectory.from_dict(data)
    else:
        raise ConfigError(f"There is nothing at {source}: give a buffer folder or a .json file.")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a training's JSON-lines metrics; values that are not numbers are left out.

    Raises:
        ConfigError: the file is missing or not JSON lines.
    """
    try:
        rows = [
            msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.strip()
        ]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"The metrics {path} could not be read as JSON lines: {error}."
        ) from error
    return [
        {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        for row in rows
        if isinstance(row, dict)
    ]


def _records(source: Path) -> Iterable[dict[str, object]]:
    text = source.read_bytes()
    try:
        if source.suffix == ".jsonl":
            return [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
        data = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ReplayError(f"{source} is not JSON: {error}.") from error
    return data if isinstance(data, list) else [data]


def _matching(found: Iterable[Trajectory], task: str, prefix: str) -> Iterator[Trajectory]:
    none = True
    for trajectory in found:
        if task and trajectory.instance_id != task:
            continue
        if prefix and not trajectory.trajectory_id.startswith(prefix):
            continue
        none = False
        yield trajectory
    if none and (task or prefix):
        wanted = " and ".join(filter(None, (task and f"task {task}", prefix and f"id {prefix}…")))
        raise ConfigError(f"No trajectory has {wanted}: run `swe view` without it for a list.")


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path:
            raise ConfigError(f"{text!r} is not NAME=PATH.")
        if name in pairs:
            raise ConfigError(f"The name {name!r} is given twice: give each its own.")
        pairs[name] = path
    return pairs
