"""Tasks made from real packages, proven again and again: how many, how long, how many hold.

Six source distributions, pinned by version and hash, become tasks with one bug and tasks with two.
Each task is validated: the gold patch must resolve it and the empty patch must not, in every one of
`--repeats` runs, the tests in another order in all but the first. Stopped anywhere, the same
command goes on.

    python benchmarks/synth.py --out runs/synth --workers 2
"""

from __future__ import annotations

import argparse
import compileall
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from swe_env.machine import machine
from swe_env.tasks import dump
from swe_env.tasks.commands import Bar
from swe_env.tasks.synth.package import prepare
from swe_env.tasks.synth.settings import Settings
from swe_env.tasks.synth.source import kept
from swe_env.tasks.validate import validate
from swe_env.types import Source, Task

PACKAGES = (
    ("funcy", "2.1", "8979feb3de7120afd1d00e5a8eae810c1942e4bfbc91697151e9ee1e49f79284"),
    ("humanize", "4.17.0", "1d6a36c453dbfbb3f0b34601d2e0b4ce5d48d780305cd45714843f0068fde6ac"),
    ("isodate", "0.7.2", "4cd1aa0f43ca76f4a6c6c0292a85f40b35ec2e43e315b59f06e6d32171a953e6"),
    ("parsimonious", "0.11.0", "e080377d98957beec053580d38ae54fcdf7c470fb78670ba4bf8b5f9d5cad2a9"),
    ("pathspec", "1.1.1", "17db5ecd524104a120e173814c90367a96a98d07c45b2e10c2f3919fff91bf5a"),
    ("semver", "3.0.4", "afc7d8c584a5ed0a11033af086e8af226a9c0b206f313e0301f8dd7b6b589602"),
)
"""Name, version and sha256 of each source distribution; none of them is a quickstart package."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/synth", help="folder of tasks and proofs")
    parser.add_argument("--result", default="benchmarks/results/synth.json")
    parser.add_argument("--single", type=int, default=110, help="tasks with one bug a package")
    parser.add_argument("--double", type=int, default=15, help="tasks with two bugs a package")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--packages", default="", help="names, with commas between; all by default")
    options = parser.parse_args()
    named = options.packages.split(",") if options.packages else [name for name, *_ in PACKAGES]
    out = Path(options.out)
    rows = [package(source, out, options) for source in PACKAGES if source[0] in named]
    # Where the files lie is of no interest to whoever reads the result.
    asked = {name: value for name, value in vars(options).items() if name not in ("out", "result")}
    result = {**summary(rows), "packages": rows, "options": asked}
    print(json.dumps(result, indent=2))
    if options.result and set(named) == {name for name, *_ in PACKAGES}:
        path = Path(options.result)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


def package(pinned: tuple[str, str, str], out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make and prove one package's tasks; what was finished before is read back."""
    name, version, sha256 = pinned
    folder = out / f"{name}-{version}"
    finished = folder / "result.json"
    if finished.exists():
        found: dict[str, Any] = json.loads(finished.read_text())
        return found
    source = Source(kind="sdist", location=name, version=version, sha256=sha256)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    environment = prepare(source).environment
    # An environment without compiled files would compile pytest anew in each of the many runs.
    compileall.compile_dir(environment, quiet=2)
    seconds["environment"] = time.monotonic() - started
    tasks: list[Task] = []
    for label, settings in (
        ("single", Settings(limit=options.single)),
        ("double", Settings(limit=options.double, bugs=2, seed=1)),
    ):
        # Times go to a file: a run that goes on after a stop finds the tasks made already.
        noted = folder / f"{label}.seconds"
        started = time.monotonic()
        tasks += kept(source, settings, workers=options.workers, progress=Bar())
        if not noted.exists():
            folder.mkdir(parents=True, exist_ok=True)
            noted.write_text(str(time.monotonic() - started))
        seconds[label] = float(noted.read_text())
    started = time.monotonic()
    report = validate(
        tasks,
        sandbox=options.sandbox,
        repeats=options.repeats,
        workers=options.workers,
        record=folder / "proofs.jsonl",
        progress=Bar(),
    )
    seconds["validation"] = time.monotonic() - started
    dump([t for t in report.tasks if t.metadata["validation"]["valid"]], folder / "tasks.jsonl")
    row = {
        "package": name,
        "version": version,
        "sha256": sha256,
        "asked": {"single": options.single, "double": options.double},
        "tasks": len(tasks),
        "two_bugs": sum("bugs" in task.metadata for task in tasks),
        "functions": len({(t.metadata["path"], t.metadata["function"]) for t in tasks}),
        "operators": dict(
            Counter(t.metadata["operator"] for t in tasks if "bugs" not in t.metadata)
        ),
        "valid": report.valid,
        "quarantined": report.quarantined,
        "invalid": report.invalid,
        "failed": report.failed,
        "flaky_tests": report.flaky_tests,
        "reasons": report.reasons,
        "runs": sum(proof.runs for proof in report.proofs),
        "test_seconds": round(sum(proof.seconds for proof in report.proofs), 1),
        "fail_to_pass_median": statistics.median(len(task.FAIL_TO_PASS) for task in tasks),
        "statement_characters_median": statistics.median(len(t.problem_statement) for t in tasks),
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }
    if not report.failed:
        finished.write_text(json.dumps(row, indent=2))
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All packages together."""
    keys = ("tasks", "valid", "quarantined", "invalid", "failed", "flaky_tests", "runs")
    sums = {key: sum(row[key] for row in rows) for key in keys}
    kinds = {name for row in rows for name in row["operators"]}
    return {**sums, "operators": len(kinds)}


if __name__ == "__main__":
    main()
