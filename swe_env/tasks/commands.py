"""`swe tasks`: list, show, make and validate tasks."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from typing import Annotated, Any

import msgspec
import typer

from swe_env.tasks import dump, find, load
from swe_env.types import Task

app = typer.Typer(help="Tasks: where they come from, what is in them, whether they hold.")

Spec = Annotated[
    str, typer.Argument(help="quickstart, quickstart:train, FILE.jsonl, synth:…, swebench:…")
]
Seed = Annotated[int, typer.Option(help="Of sources that make tasks.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def register(root: typer.Typer) -> None:
    """Mount ``swe tasks``."""
    root.add_typer(app, name="tasks")


class Bar:
    """Progress on stderr: one rewritten line on a terminal, else one line per finished label."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show how far `label` is."""
        if self._live:
            end = "\n" if done == total else ""
            print(f"\r{label}: {done}/{total}\x1b[K", end=end, file=sys.stderr, flush=True)
        elif done == total:
            print(f"{label}: {done}/{total}", file=sys.stderr, flush=True)


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
) -> None:
    """Make tasks and write them to a file."""
    asked = {"limit": str(limit or ""), "detail": detail}
    extra = "&".join(f"{name}={value}" for name, value in asked.items() if value)
    if extra and spec.startswith("synth:"):
        spec += ("&" if "?" in spec else "?") + extra
    tasks = load(spec, seed=seed, progress=Bar())
    tasks = tasks[:limit] if limit else tasks
    dump(tasks, out)
    operators = Counter(str(task.metadata.get("operator", "")) for task in tasks)
    shares = ", ".join(f"{name} {count}" for name, count in operators.most_common() if name)
    print(f"{len(tasks)} tasks written to {out}" + (f" ({shares})" if shares else ""))


@app.command()
def validate(
    spec: Spec,
    repeats: Annotated[int, typer.Option(help="Runs of each patch.")] = 3,
    sandbox: Annotated[str, typer.Option(help="auto, local or process.")] = "auto",
    workers: Annotated[int, typer.Option(help="Tasks at once; 0 for one per core.")] = 0,
    seed: Seed = 0,
    out: Annotated[str, typer.Option(help="Write the tasks, with their record, here.")] = "",
    as_json: Json = False,
) -> None:
    """Prove every task: gold resolves, nothing done does not, again and again."""
    from swe_env.tasks.validate import validate as run

    tasks = load(spec, seed=seed, progress=Bar())
    report = run(tasks, sandbox=sandbox, repeats=repeats, workers=workers, progress=Bar())
    if out:
        dump(report.tasks, out)
    if as_json:
        _print(dataclasses.replace(report, tasks=()))
    else:
        for proof in report.proofs:
            for problem in proof.problems:
                print(f"{proof.instance_id}: {problem}")
            for test in proof.flaky:
                print(f"{proof.instance_id}: {test} is flaky.")
        print(
            f"{report.valid} of {len(tasks)} tasks hold in {repeats} runs each; "
            f"{report.quarantined} flaky, {report.invalid} wrong."
        )
    if report.valid < len(tasks):
        raise typer.Exit(1)
