"""The `unittest`, `django` and `sympy` runners: outcomes over the result channel."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from swe_env.errors import ConfigError, GradingError
from swe_env.grading.channel import Records, read_channel
from swe_env.grading.pytest_runner import OUTPUT, START, last_line, names_of, plugin_source
from swe_env.grading.runs import TestRun, worst
from swe_env.sandbox.base import Sandbox
from swe_env.types import ExecResult

_SHOWN = re.compile(r"^(\w+) \(([\w.]+)\)$")
"""How unittest prints a test: ``test_x (package.module.Class)``, from 3.11 with the name again."""


@dataclass(frozen=True, slots=True)
class Command:
    """A test command taken apart."""

    python: tuple[str, ...]
    """The interpreter and its own options."""
    words: tuple[str, ...]
    """A script or ``-m module``, and its arguments."""
    module: bool
    env: dict[str, str]


def parse_command(command: str) -> Command:
    """Take ``[VAR=value …] [python [options]] (script | -m module) [arguments]`` apart.

    Raises:
        ConfigError: the command has another form.
    """
    words = shlex.split(command)
    env: dict[str, str] = {}
    while words and re.match(r"\w+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    python = ["python"]
    if words and re.match(r"python[\d.]*$", words[0].rpartition("/")[2]):
        python = [words.pop(0)]
        while words and words[0].startswith("-") and words[0] != "-m":
            takes_value = words[0] in ("-W", "-X")
            python += [words.pop(0) for _ in range(2 if takes_value else 1) if words]
    if not words or (words[0].startswith("-") and len(words) < 2):
        raise ConfigError(
            f"This runner cannot run {command!r}: use 'python -m unittest …', 'tests/runtests.py "
            "…' or 'bin/test …', or name the runner that can in the task's log_parser."
        )
    return Command(tuple(python), tuple(words), words[0] == "-m", env)


@cache
def _plugin_source() -> str:
    return files(__package__).joinpath("unit_plugin.py").read_text(encoding="utf-8")


class UnitRunner:
    """Runs a test program under `unit_plugin` and reads its channel."""

    kind = "unittest"
    """Which reporter of `unit_plugin` watches."""
    extra: tuple[str, ...] = ()
    """Arguments added to the command."""

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
            "support": plugin_source(),
            "kind": self.kind,
            "cwd_first": parsed.module,
            "distrusted": sorted(distrusted),
            "words": [*parsed.words, *self.extra, *self.arguments(targets)],
        }
        started = time.perf_counter()
        result = sandbox.exec(
            ["sh", "-c", START, "sh", *parsed.python, "-s", "-c", _plugin_source()],
            timeout=timeout,
            stdin=key + json.dumps(request).encode() + b"\n",
            env=parsed.env,
            channel=True,
            output_limit=OUTPUT,
        )
        seconds = time.perf_counter() - started
        records = read_channel(result.channel, key)
        _check_started(records, result)
        return self._test_run(records, result, seconds, timeout)

    def files(self, test_ids: Sequence[str], patched: Sequence[str] = ()) -> list[str]:
        """The patched test files, or the modules that the ids name."""
        if patched:
            return list(dict.fromkeys(patched))
        return list(dict.fromkeys(filter(None, map(self.file_of, test_ids))))

    def file_of(self, test_id: str) -> str:
        """The file of one test, by its id; empty where the id does not say."""
        parts = _label(test_id).split(".")
        classes = [i for i, part in enumerate(parts) if part[:1].isupper()]
        module = parts[: classes[0]] if classes else parts[:-1]
        return "/".join(module) + ".py" if module else ""

    def arguments(self, targets: Sequence[str]) -> list[str]:
        """What the program is told to run, for paths or test ids."""
        return [_label(target) for target in targets]

    def test_id(self, record: dict[str, Any]) -> str:
        """The id under which the outcome of a record is kept."""
        return str(record["id"])

    def _test_run(
        self, records: Records, result: ExecResult, seconds: float, timeout: float
    ) -> TestRun:
        outcomes: dict[str, str] = {}
        also: dict[str, str] = {}
        details: dict[str, str] = {}
        durations: dict[str, float] = {}
        for record in records.of("unit"):
            test_id, outcome = self.test_id(record), record["outcome"]
            outcomes[test_id] = worst(outcomes.get(test_id, outcome), outcome)
            durations[test_id] = durations.get(test_id, 0.0) + record["seconds"]
            for name in {record["id"], record["name"], record["about"]} - {test_id, ""}:
                also[name] = worst(also.get(name, outcome), outcome)
            if "text" in record:
                details.setdefault(test_id, record["text"])
        error = _error(records, result, timeout)
        return TestRun(
            outcomes=outcomes,
            also=also,
            details=details,
            durations=durations,
            ended=not error,
            error=error,
            output=result.output,
            exit_code=result.exit_code,
            seconds=seconds,
            tampering=tuple(_tampering(records)),
        )


class DjangoRunner(UnitRunner):
    """Django's ``tests/runtests.py``: labels are modules under ``tests``, ids as printed."""

    def file_of(self, test_id: str) -> str:
        """See `UnitRunner.file_of`; a description says no file."""
        inside = super().file_of(test_id) if _SHOWN.match(test_id) else ""
        return f"tests/{inside}" if inside else ""

    def arguments(self, targets: Sequence[str]) -> list[str]:
        """Paths as the labels that SWE-bench makes of them."""
        labels = []
        for target in targets:
            if target.endswith(".py"):
                target = target.removesuffix(".py").removeprefix("tests/").replace("/", ".")
            labels.append(_label(target))
        return labels

    def test_id(self, record: dict[str, Any]) -> str:
        """The id as it is printed."""
        return str(record["name"])


class SympyRunner(UnitRunner):
    """sympy's ``bin/test``: ids are names of functions."""

    kind = "sympy"
    extra = ("--no-subprocess",)
    """In one process, where the channel is; `PYTHONHASHSEED` is set anyway."""

    def file_of(self, test_id: str) -> str:
        """Empty: a function's name says no file."""
        return test_id if test_id.endswith(".py") else ""

    def arguments(self, targets: Sequence[str]) -> list[str]:
        """Paths as they are; names as a filter."""
        names = [target for target in targets if re.fullmatch(r"\w+", target)]
        paths = [target for target in targets if target not in names]
        return [*paths, "-k", *names] if names else paths


def _label(target: str) -> str:
    """A test id as the dotted name that unittest's loader takes."""
    shown = _SHOWN.match(target)
    if shown is None:
        return target
    name, place = shown.groups()
    return place if place.rpartition(".")[2] == name else f"{place}.{name}"


def _check_started(records: Records, result: ExecResult) -> None:
    if records.first("boot") is None:
        tail = result.output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise GradingError(
            f"The task's Python did not start (exit code {result.exit_code}: {tail[0][:300]}): "
            "check the task's environment."
        )
    missing = records.first("no-runner")
    if missing is not None:
        raise GradingError(
            f"The repository's test runner cannot be imported ({missing['text']}): check the "
            "task's environment."
        )


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
        return f"exit code {result.exit_code} though the runner reported {end['exit']}"
    if records.first("complete") is None:
        return f"the runner left before its tests were through: {last_line(result.output)}"
    return ""


def _tampering(records: Records) -> list[str]:
    found = []
    if replaced := records.of("replaced"):
        names = names_of([record["name"] for record in replaced])
        found.append(f"The test runner was altered while it ran: {names}.")
    if records.forged:
        found.append(f"{records.forged} forged lines were written to the result channel.")
    return found


unittest_runner = UnitRunner()
django_runner = DjangoRunner()
sympy_runner = SympyRunner()
