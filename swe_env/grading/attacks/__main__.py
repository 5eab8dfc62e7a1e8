"""Run every attack and every honest solution, and print what became of each."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from swe_env.grading.attacks import ATTACKS, HONEST, Attempt
from swe_env.grading.attacks.episode import EPISODE, try_in_episode
from swe_env.grading.attacks.project import Project, make_project


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one attempt."""

    attempt: str
    kind: str
    """``attack``, ``honest`` or ``episode``."""
    sandbox: str
    good: bool
    """The attack failed and was named where it must be; the honest solution resolved."""
    outcome: str
    named: tuple[str, ...]
    """What the report says of it."""
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 when an attack succeeded or an honest solution was harmed."""
    parser = argparse.ArgumentParser(prog="python -m swe_env.grading.attacks", description=__doc__)
    parser.add_argument("--sandbox", action="append", help="local (default), process, …")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory(prefix="swe-attacks-") as folder:
        project = make_project(Path(folder))
        for sandbox in options.sandbox or ["local"]:
            for kind, attempts in (("attack", ATTACKS), ("honest", HONEST)):
                results += [_show(_try(project, kind, one, sandbox)) for one in attempts]
            if sandbox not in ("process", "auto"):  # the first isolates nothing and says so
                results += [_show(_in_episode(name, sandbox)) for name in EPISODE]
    bad = [result for result in results if not result.good]
    print(f"{len(results)} attempts, {len(bad)} not as they must be.")
    if options.out:
        told = {
            "machine": {"kernel": platform.release(), "python": platform.python_version()},
            "command": "python -m swe_env.grading.attacks " + shlex.join(arguments or sys.argv[1:]),
            "attempts": len(results),
            "not_as_they_must_be": len(bad),
            "results": [asdict(result) for result in results],
        }
        options.out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return 1 if bad else 0


def _try(project: Project, kind: str, attempt: Attempt, sandbox: str) -> Result:
    began = time.monotonic()
    report = project.grade(attempt, sandbox)
    said = tuple(filter(None, (*report.tampering, report.error)))
    failed = not report.resolved and is_named(attempt, said)
    good = report.resolved if kind == "honest" else failed
    outcome = "refused" if not report.patch_applied else "unresolved"
    if report.resolved:
        outcome = "resolved"
    seconds = round(time.monotonic() - began, 2)
    return Result(attempt.name, kind, sandbox, good, outcome, said, seconds)


def _in_episode(name: str, sandbox: str) -> Result:
    began = time.monotonic()
    failure = try_in_episode(name, sandbox)
    outcome = failure or "contained"
    return Result(
        name, "episode", sandbox, not failure, outcome, (), round(time.monotonic() - began, 2)
    )


def is_named(attempt: Attempt, said: tuple[str, ...]) -> bool:
    """Whether the report says of the attempt what it must."""
    return attempt.named in " ".join(said)


def _show(result: Result) -> Result:
    mark = "ok " if result.good else "BAD"
    print(f"{mark} {result.sandbox:8} {result.kind:8} {result.attempt:48} {result.outcome}")
    for sentence in result.named:
        print(f"{'':22}{sentence[:150]}")
    sys.stdout.flush()
    return result


if __name__ == "__main__":
    sys.exit(main())
