"""`swe tasks`: list, show, make and validate tasks."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from swe_env.errors import ConfigError
from swe_env.tasks import dump, find, load, rows
from swe_env.types import Task

if TYPE_CHECKING:
    from swe_env.tasks.validate import Validation

app = typer.Typer(help="Tasks: where they come from, what is in them, whether they hold.")

Spec = Annotated[
    str,
    typer.Argument(
        help="quickstart, quickstart:train, FILE.jsonl, synth:NAME==VERSION, swebench:…"
    ),
]
Seed = Annotated[int, typer.Option(help="Of sources that make tasks.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def register(root: typer.Typer) -> None:
    """Mount ``swe tasks``."""
    root.add_typer(app, name="tasks")


class Bar:
    """Progress on stderr: one rewritten line on a terminal, else a line each half minute."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._told = time.monotonic()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show how far `label` is."""
        if self._live:
            end = "\n" if done == total else ""
            print(f"\r{label}: {done}/{total}\x1b[K", end=end, file=sys.stderr, flush=True)
        elif done == total or time.monotonic() - self._told > 30:
            self._told = time.monotonic()
            print(f"{label}: {done}/{total}", file=sys.stderr, flush=True)


def _writable(path: str) -> str:
    """The path, once it is clear that tasks can be written there and read back."""
    if not path.endswith(rows.SUFFIXES):
        endings = " or ".join(rows.SUFFIXES)
        raise ConfigError(f"Tasks are written to a file that ends in {endings}, not to {path!r}.")
    file = Path(path).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder of {path} cannot be made: {error}.") from error
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: check the folder and its permissions.")
    return path


def _print(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


@app.command("list")
def list_(spec: Spec, seed: Seed = 0, as_json: Json = False) -> None:
    """One line a task: id, repository, how many tests it hides, first words of its issue."""
    tasks = load(spec, seed=seed, progress=Bar())
    if as_json:
        _print([{**msgspec.to_builtins(task.public()), "tests": _tests(task)} for task in tasks])
        return
    for task in tasks:
        first = " ".join(task.problem_statement.split())[:60]
        print(f"{task.instance_id:40} {len(task.FAIL_TO_PASS):3}  {first}")
    print(f"{len(tasks)} tasks", file=sys.stderr)


def _tests(task: Task) -> dict[str, int]:
    return {"fail_to_pass": len(task.FAIL_TO_PASS), "pass_to_pass": len(task.PASS_TO_PASS)}


@app.command()
def show(
    spec: Spec,
    instance_id: str,
    seed: Seed = 0,
    answer: Annotated[bool, typer.Option(help="Also the patches and hidden tests.")] = False,
    as_json: Json = False,
) -> None:
    """One task as its agent sees it."""
    task = find(load(spec, seed=seed, progress=Bar()), instance_id)
    if as_json:
        _print(task if answer else task.public())
        return
    print(f"{task.instance_id}  ({task.repo} {task.version}, {task.base_commit[:12]})")
    print(f"\n{task.problem_statement.rstrip()}\n\nVisible tests: {task.test_command}")
    if answer:
        print(f"\n{task.patch}\n{task.test_patch}\nFAIL_TO_PASS:")
        print("\n".join(task.FAIL_TO_PASS))


@app.command()
def make(
    spec: Spec,
    out: Annotated[str, typer.Option(help="File to write: .jsonl or .jsonl.zst.")],
    limit: Annotated[int, typer.Option(help="Most tasks; 0 for the source's own.")] = 0,
    seed: Seed = 0,
    detail: Annotated[str, typer.Option(help="symptom, function or line.")] = "",
    bugs: Annotated[int, typer.Option(help="Bugs of a task, each in another function.")] = 1,
    history: Annotated[int, typer.Option(help="Commits to look through for real fixes.")] = 0,
    lm: Annotated[str, typer.Option(help="Base URL of a server that words the statements.")] = "",
    lm_model: Annotated[str, typer.Option(help="The server's model.")] = "",
) -> None:
    """Make tasks and write them to a file."""
    _writable(out)
    if lm and not lm_model:
        raise ConfigError("A server that words statements (--lm) needs --lm-model, its model.")
    asked = {
        "limit": str(limit or ""),
        "detail": detail,
        "bugs": str(bugs) if bugs != 1 else "",
        "history": str(history or ""),
    }
    extra = "&".join(f"{name}={value}" for name, value in asked.items() if value)
    if extra and spec.startswith("synth:"):
        spec += ("&" if "?" in spec else "?") + extra
    tasks = load(spec, seed=seed, progress=Bar())
    tasks = tasks[:limit] if limit else tasks
    if lm:
        from swe_env.tasks.reword import Server, reword

        server = Server(lm, lm_model, os.environ.get("OPENAI_API_KEY", "none"))
        tasks = reword(tasks, server, name=lm_model, progress=Bar())
    dump(tasks, out)
    operators = Counter(str(task.metadata.get("operator", "")) for task in tasks)
    shares = ", ".join(f"{name} {count}" for name, count in operators.most_common() if name)
    print(f"{len(tasks)} tasks written to {out}" + (f" ({shares})" if shares else ""))


@app.command()
def split(
    spec: Spec,
    out: Annotated[str, typer.Option(help="Start of the files' names: OUT.train.jsonl, …")],
    by: Annotated[str, typer.Option(help="package or function: never on both sides.")] = "package",
    heldout: Annotated[float, typer.Option(help="Share of the tasks to hold out.")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Write train and held-out tasks to a file each."""
    from swe_env.tasks import splits

    sides = splits.split(load(spec, seed=seed, progress=Bar()), by=by, heldout=heldout, seed=seed)  # type: ignore[arg-type]
    for side in (splits.TRAIN, splits.HELDOUT):
        chosen = [task for task in sides if task.metadata["split"] == side]
        path = f"{out}.{side}.jsonl"
        dump(chosen, _writable(path))
        print(f"{len(chosen)} tasks written to {path}")


@app.command()
def validate(
    spec: Spec,
    repeats: Annotated[int, typer.Option(help="Runs of each patch.")] = 3,
    sandbox: Annotated[str, typer.Option(help="auto, local, docker or process.")] = "auto",
    workers: Annotated[int, typer.Option(help="Tasks at once; 0 for one per core.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for one run of a task's tests.")] = 600.0,
    seed: Seed = 0,
    out: Annotated[str, typer.Option(help="Write the tasks, with their record, here.")] = "",
    only_valid: Annotated[bool, typer.Option(help="Leave out tasks that do not hold.")] = False,
    as_json: Json = False,
) -> None:
    """Prove every task: gold resolves, nothing done does not, again and again.

    The first run has the tests in their own order, the others in another. Flaky tests are taken
    out of the task's lists and named in its record. With --out the command can be stopped and run
    again: proofs are kept in OUT.proofs as they are made.

    Exit code 1: some task does not hold; 3: the machinery failed for some.
    """
    from swe_env.tasks.validate import validate as run

    if out:
        _writable(out)
    tasks = load(spec, seed=seed, progress=Bar())
    report = run(
        tasks,
        sandbox=sandbox,
        repeats=repeats,
        workers=workers,
        timeout=timeout,
        record=f"{out}.proofs" if out else None,
        progress=Bar(),
    )
    if out:
        kept = [t for t in report.tasks if t.metadata["validation"]["valid"] or not only_valid]
        dump(kept, out)
    if as_json:
        _print(dataclasses.replace(report, tasks=()))
    else:
        _tell(report)
    if report.failed:
        raise typer.Exit(3)
    if report.valid < len(tasks):
        raise typer.Exit(1)


def _tell(report: Validation) -> None:
    for proof in report.proofs:
        for problem in proof.problems:
            print(f"{proof.instance_id}: {problem}")
        for test, how in proof.flaky.items():
            print(f"{proof.instance_id}: quarantined {test}: {how}.")
    for reason, count in report.reasons.items():
        print(f"{count} dropped: {reason}.")
    print(
        f"{report.valid} of {len(report.proofs)} tasks hold in {report.repeats} runs a patch; "
        f"{report.invalid} wrong, {report.quarantined} quarantined, {report.failed} not judged; "
        f"{report.flaky_tests} flaky tests taken out."
    )
