"""The `pytest` runner: outcomes over the result channel, never from what was printed."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from swe_env.errors import ConfigError, GradingError
from swe_env.grading.channel import Records, read_channel
from swe_env.grading.runs import TestRun, worst
from swe_env.sandbox.base import Sandbox
from swe_env.types import ExecResult, Outcome

_FIXED = ("--tb=short", "--continue-on-collection-errors", "-p", "no:randomly")
START = (
    'SWE_ENV_PYTHONPATH="${PYTHONPATH-}"; export SWE_ENV_PYTHONPATH; unset PYTHONPATH; exec "$@"'
)
"""Starts the interpreter with nothing of the repository importable, so that neither a
``sitecustomize`` nor a module named like one of the standard library comes before the plugin."""
OUTPUT = 200_000
"""Characters of the run's printed text that are kept."""
_NAMED = 5
"""How many culprits one sentence names."""


@dataclass(frozen=True, slots=True)
class PytestCommand:
    """A test command taken apart."""

    python: tuple[str, ...]
    """The interpreter and its own options."""
    arguments: tuple[str, ...]
    cwd_first: bool
    """Whether the checkout's root is on `sys.path`, as ``python -m`` does."""
    env: Mapping[str, str] = field(default_factory=dict)


def parse_command(command: str) -> PytestCommand:
    """Take ``[VAR=value …] (python [options] -m pytest | pytest) [arguments]`` apart.

    Raises:
        ConfigError: the command has another form.
    """
    words = shlex.split(command)
    env: dict[str, str] = {}
    while words and "=" in words[0].partition("/")[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if words and words[0].rpartition("/")[2] in ("pytest", "py.test"):
        folder = words[0].rpartition("/")[0]
        python = f"{folder}/python" if folder else "python"
        return PytestCommand((python,), tuple(words[1:]), False, env)
    for index in range(1, len(words) - 1):
        if words[index] == "-m" and words[index + 1] in ("pytest", "py.test"):
            return PytestCommand(tuple(words[:index]), tuple(words[index + 2 :]), True, env)
    raise ConfigError(
        f"The pytest runner cannot run {command!r}: use 'python -m pytest …' or 'pytest …', or "
        "name the runner that can in the task's log_parser."
    )


@cache
def plugin_source() -> str:
    """The program handed to the task's interpreter."""
    return files(__package__).joinpath("pytest_plugin.py").read_text(encoding="utf-8")


_INTERNAL_ERROR = 3
_BROKEN_OFF = "SystemError: AST constructor recursion depth mismatch"
"""CPython up to 3.12 says so where two threads parse at once: then pytest ends in the middle,
whatever the tests are worth. The plugin makes `ast.parse` wait; this is for code that goes past
it."""
_TRIES = 3


class PytestRunner:
    """Runs pytest under `pytest_plugin` and reads its channel."""

    def run(
        self,
        sandbox: Sandbox,
        *,
        command: str,
        targets: Sequence[str],
        timeout: float,
        distrusted: Collection[str] = (),
    ) -> TestRun:
        """See `swe_env.grading.runs.Runner.run`."""
        parsed = parse_command(command)
        key = os.urandom(32)
        request = {
            "cwd_first": parsed.cwd_first,
            "distrusted": sorted(distrusted),
            "targets": list(targets),
            "arguments": [
                *parsed.arguments,
                *_FIXED,
                f"--rootdir={sandbox.workdir}",
                *targets,
            ],
        }
        for _ in range(_TRIES):
            started = time.perf_counter()
            result = sandbox.exec(
                ["sh", "-c", START, "sh", *parsed.python, "-s", "-c", plugin_source()],
                timeout=timeout,
                stdin=key + json.dumps(request).encode() + b"\n",
                env=dict(parsed.env),
                channel=True,
                output_limit=OUTPUT,
            )
            seconds = time.perf_counter() - started
            if result.exit_code != _INTERNAL_ERROR or _BROKEN_OFF not in result.output:
                break
        records = read_channel(result.channel, key)
        _check_started(records, result)
        return _test_run(records, result, seconds, timeout)

    def files(self, test_ids: Sequence[str], patched: Sequence[str] = ()) -> list[str]:
        """The file part of each id (``path::name``); for an id without, every patched test file."""
        found: dict[str, None] = {}
        for test_id in test_ids:
            path, place, _ = test_id.partition("::")
            whole = place or "/" in path or path.endswith(".py") or not patched
            found.update(dict.fromkeys([path] if whole else patched))
        return list(found)


def _check_started(records: Records, result: ExecResult) -> None:
    if records.first("boot") is None:
        tail = result.output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise GradingError(
            f"The task's Python did not start (exit code {result.exit_code}: {tail[0][:300]}): "
            "check the task's environment."
        )
    missing = records.first("no-pytest")
    if missing is not None:
        raise GradingError(
            f"pytest cannot be imported in the task's environment ({missing['text']}): add it to "
            "the task's requirements."
        )


def _test_run(records: Records, result: ExecResult, seconds: float, timeout: float) -> TestRun:
    outcomes: dict[str, str] = {}
    details: dict[str, str] = {}
    durations: dict[str, float] = {}
    rewritten: list[str] = []
    for record in records.of("test"):
        test_id = record["id"]
        durations[test_id] = durations.get(test_id, 0.0) + record["seconds"]
        outcome = _outcome(record)
        if record["raised"] and outcome not in (Outcome.FAILED, Outcome.ERROR, ""):
            rewritten.append(test_id)
            outcome = Outcome.FAILED
        if outcome:
            outcomes[test_id] = worst(outcomes.get(test_id, outcome), outcome)
        if "text" in record:
            details.setdefault(test_id, record["text"])
    for record in records.of("collect"):
        outcomes[record["id"]] = Outcome.ERROR
        details[record["id"]] = record["text"]
    error = _error(records, result, timeout)
    return TestRun(
        outcomes=outcomes,
        details=details,
        durations=durations,
        ended=not error,
        error=error,
        output=result.output,
        exit_code=result.exit_code,
        seconds=seconds,
        tampering=tuple(dict.fromkeys(_tampering(records, rewritten))),
    )


def _outcome(record: dict[str, Any]) -> str:
    """What one phase says about the test; empty when it says nothing yet (setup passed)."""
    when, outcome = record["when"], record["outcome"]
    if outcome == "rerun":
        return ""
    if outcome == "failed":
        return Outcome.FAILED if when == "call" else Outcome.ERROR
    if outcome == "skipped":
        return Outcome.XFAIL if record["xfail"] else Outcome.SKIPPED
    if when != "call":
        return ""
    return Outcome.XPASS if record["xfail"] else Outcome.PASSED


def _error(records: Records, result: ExecResult, timeout: float) -> str:
    end = records.first("end")
    if result.timed_out:
        return f"timed out after {timeout:g} s"
    if result.limit:
        return f"killed: it went over the {result.limit} limit"
    if end is None:
        return f"the test process ended early with exit code {result.exit_code}"
    if records.lost:
        return f"{records.lost} of its result records did not arrive"
    if end["exit"] != result.exit_code:
        return f"exit code {result.exit_code} though pytest reported {end['exit']}"
    if end["exit"] not in (0, 1, 2, 5):
        return f"pytest stopped with exit code {end['exit']}: {last_line(result.output)}"
    return ""


def last_line(output: str) -> str:
    """The line of a run's output that says why it stopped."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "e  ", "importerror"))]
    return (errors[:1] or lines[-1:] or ["it printed nothing"])[0].strip()[:300]


def _tampering(records: Records, rewritten: list[str]) -> list[str]:
    found = []
    if rewritten:
        found.append(f"A failure was reported as something else: {names_of(rewritten)}.")
    for record in records.of("hook"):
        found.append(f"{record['file']} hooks into the reporting ({record['name']}).")
    for record in records.of("changed"):
        found.append(f"{record['file']} was changed while the tests ran.")
    for record in records.of("foreign"):
        found.append(f"{record['file']} reported results itself ({record['what']}).")
    if passed := [record["id"] for record in records.of("canary") if record["outcome"] == "passed"]:
        found.append(
            f"{len(passed)} of the tests that must fail, planted to check the run, passed."
        )
    elif _taken_out(records):
        found.append("The tests that must fail, planted to check the run, were taken out of it.")
    replaced = records.of("replaced")
    if replaced:
        found.append(f"pytest was altered while it ran: {names_of([r['name'] for r in replaced])}.")
    if records.forged:
        found.append(f"{records.forged} forged lines were written to the result channel.")
    return found


def _taken_out(records: Records) -> bool:
    """Whether the run went to its end without a word on the tests planted in it."""
    planted, end = records.first("planted"), records.first("end")
    ran = end is not None and end["exit"] in (0, 1)
    return ran and planted is not None and bool(planted["ids"]) and not records.of("canary")


def names_of(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(dict.fromkeys(names[:_NAMED]))
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


runner = PytestRunner()
