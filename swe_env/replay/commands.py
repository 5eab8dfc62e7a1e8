"""`swe buffer`: look at replay buffers, keep them in order, and carry them to other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from swe_env.errors import ConfigError

Buffer = Annotated[str, typer.Argument(help="Buffer: a folder or fsspec URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", "-w", help="COLUMN=VALUE, only such records; repeatable."),
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]


def register(app: typer.Typer) -> None:
    """Mount this module's commands."""
    group = typer.Typer(
        name="buffer", help="Inspect, repair and convert replay buffers.", no_args_is_help=True
    )
    for command in (stats, verify, repair, compact, merge, split, card, export):
        group.command()(command)
    group.command("import")(import_)
    app.add_typer(group)


def stats(buffer: Buffer, where: Where = None, json: Json = False) -> None:
    """Count what a buffer holds, from its columns alone."""
    opened = _open(buffer)
    found = msgspec.to_builtins(_chosen(opened, where).stats())
    found["shards"] = len(opened.shards())
    found["damages"] = [str(damage) for damage in opened.damages]
    _show(found, json)


def verify(buffer: Buffer, json: Json = False) -> None:
    """Read every record; exit code 1 and a list by shard and offset if any is damaged."""
    opened = _open(buffer)
    damages = opened.verify()
    if json:
        _print_json({"records": len(opened), "damages": msgspec.to_builtins(damages)})
    else:
        for damage in damages:
            typer.echo(str(damage))
        typer.echo(f"{len(opened)} records, {len(damages)} damages.")
    if damages:
        raise typer.Exit(1)


def repair(buffer: Buffer, json: Json = False) -> None:
    """Take what is damaged out of the shards, set it aside, and rebuild the index."""
    from swe_env.replay.upkeep import repair

    _show(msgspec.to_builtins(repair(_open(buffer))), json)


def compact(
    buffer: Buffer,
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="Keep one record of each id.")
    ] = False,
    json: Json = False,
) -> None:
    """Join small shards into large ones; writers and readers may go on meanwhile."""
    from swe_env.replay.upkeep import compact

    _show(msgspec.to_builtins(compact(_open(buffer), deduplicate=deduplicate)), json)


def merge(
    into: Annotated[str, typer.Argument(help="Buffer that grows; made if missing.")],
    sources: Annotated[list[str], typer.Argument(help="Buffers to copy from.")],
    where: Where = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Copy records that are there already.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy other buffers' records into one, byte for byte."""
    from swe_env.replay.buffer import ReplayBuffer
    from swe_env.replay.upkeep import merge

    opened = [_chosen(_open(source), where) for source in sources]
    with ReplayBuffer(into) as target:
        _show(msgspec.to_builtins(merge(target, opened, deduplicate=not keep_duplicates)), json)


def split(
    buffer: Buffer,
    out: Annotated[str, typer.Argument(help="Folder or URL; each part is a buffer in it.")],
    parts: Annotated[list[str], typer.Argument(help="NAME=SHARE, for example train=0.9.")],
    seed: Seed = 0,
    where: Where = None,
    json: Json = False,
) -> None:
    """Split by task: all records of one task go to the same part."""
    from swe_env.replay.buffer import ReplayBuffer
    from swe_env.replay.upkeep import merge

    shares = {name: _number(value, name) for name, value in map(_pair, parts)}
    source = _chosen(_open(buffer), where)
    found: dict[str, Any] = {}
    for name, view in source.split(shares, seed=seed).items():
        path = f"{out.rstrip('/')}/{name}"
        with ReplayBuffer(path) as target:
            if len(target):
                raise ConfigError(f"{path} holds records already: give an empty place.")
            done = merge(target, [view], deduplicate=False)
        found[name] = {"records": done.copied, "tasks": view.stats().tasks, "path": path}
        found[name]["damages"] = done.damages
    _show(found, json)


def card(
    buffer: Buffer,
    out: Annotated[Path | None, typer.Option(help="File to write instead of printing.")] = None,
    title: Annotated[str, typer.Option(help="Its heading.")] = "",
) -> None:
    """Write the dataset card that the buffer's content gives."""
    from swe_env.replay.card import card

    opened = _open(buffer)
    name = title or opened.path.rstrip("/").rpartition("/")[2]
    text = card(opened, title=name, damages=opened.verify())
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
        typer.echo(str(out))


def export(
    buffer: Buffer,
    kind: Annotated[str, typer.Option("--format", "-f", help="trl-kto, atif, preds, …")],
    out: Annotated[str, typer.Option(help="File; folder for atif; dataset name for minari.")],
    where: Where = None,
    per_task: Annotated[
        int | None, typer.Option(min=1, help="Pairs a task, or rows a task and label.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write a buffer for TRL, LLaMA-Factory, Harbor (ATIF), Minari or SWE-bench's harness."""
    from swe_env.replay.export import write

    done = write(_chosen(_open(buffer), where), kind, out, per_task=per_task, seed=seed)
    _show(msgspec.to_builtins(done), json)


def import_(
    source: Annotated[Path, typer.Argument(help="File or folder of trajectories.")],
    buffer: Annotated[str, typer.Argument(help="Buffer to append to; made if missing.")],
    kind: Annotated[
        str, typer.Option("--format", "-f", help="swe-agent, mini-swe-agent or r2e; else guessed.")
    ] = "",
    verdicts: Annotated[
        Path | None, typer.Option(help="Report of SWE-bench's harness: who resolved what.")
    ] = None,
    json: Json = False,
) -> None:
    """Append the trajectories of SWE-agent, mini-swe-agent or R2E-Gym that are not there yet."""
    from swe_env.replay.buffer import ReplayBuffer
    from swe_env.replay.imports.add import add
    from swe_env.replay.imports.read import Imported, read, read_verdicts

    report = Imported()
    known = read_verdicts(verdicts) if verdicts is not None else None
    found = read(source, kind=kind, verdicts=known, report=report)
    with ReplayBuffer(buffer) as target:
        duplicates = add(target, found).duplicates
    _show({**msgspec.to_builtins(report), "duplicates": duplicates}, json)
    if not report.trajectories:
        raise ConfigError(f"No trajectory was found in {source}.")


def _open(path: str) -> Any:
    from swe_env.replay.buffer import ReplayBuffer

    return ReplayBuffer(path, create=False)


def _chosen(buffer: Any, where: list[str] | None) -> Any:
    """The records that every ``COLUMN=VALUE`` fits; a value is read as JSON where it is some."""
    conditions: dict[str, Any] = {}
    for column, text in map(_pair, where or ()):
        value = _value(text)
        if column in conditions:
            raise ConfigError(f"--where {column} is given twice: a list means any of, [1, 2].")
        _check(buffer[:0].column(column).dtype.kind, column, value)
        # A text column's value may look like JSON (an instance id of digits): fit both readings.
        alike = list(value) if isinstance(value, list) else [value, text]
        conditions[column] = lambda found, alike=alike: found in alike
    return buffer.filter(**conditions)


_TYPES: dict[str, tuple[type, str]] = {
    "b": (bool, "true or false"),
    "i": (int, "whole numbers"),
    "f": (float, "numbers"),
}
"""Kind of a column's dtype → what fits it, and how that is called; texts take anything."""


def _check(kind: str, column: str, value: Any) -> None:
    fitting, words = _TYPES.get(kind, (Any, ""))
    for one in value if isinstance(value, list) else [value]:
        try:
            msgspec.convert(one, fitting)
        except msgspec.ValidationError as error:
            raise ConfigError(f"--where {column} takes {words}, not {one!r}.") from error


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return text


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"{text!r} is not of the form NAME=VALUE.")
    return name, value


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"The share of {name} must be a number, not {text!r}.") from error


def _show(found: dict[str, Any], json: bool) -> None:
    if json:
        _print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, list):
            typer.echo(f"{name}: {len(value)}")
            for item in value:
                text = item if isinstance(item, str) else _damage(item)
                typer.echo(f"  {text}")
        elif isinstance(value, dict):
            typer.echo(f"{name}: " + ", ".join(f"{k} {v}" for k, v in value.items()))
        else:
            typer.echo(f"{name}: {value}")


def _damage(item: dict[str, Any]) -> str:
    return f"{item['shard']} at byte {item['offset']}: {item['reason']}"


def _print_json(found: Any) -> None:
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
