"""Runners for test commands of any kind: the printed log is all they say, read by a log parser."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Sequence

from swe_env.errors import GradingError
from swe_env.grading.log_parsers import PARSERS, Parser
from swe_env.grading.runs import TestRun
from swe_env.sandbox.base import Sandbox
from swe_env.types import ExecResult, Outcome

_OUTPUT = 64 << 20
"""Characters of a log that are read; a longer one has its middle left out, and tests with it."""
_BAD = (Outcome.FAILED, Outcome.ERROR)


class LogRunner:
    """Runs a command as a shell would and parses what it prints.

    Whatever the tested code prints can look like a result: use a runner with a channel where one
    can run the command.
    """

    def __init__(self, parser: Parser) -> None:
        """`parser` makes outcomes of a log."""
        self._parse = parser

    def run(
        self,
        sandbox: Sandbox,
        *,
        command: str,
        targets: Sequence[str],
        timeout: float,
        distrusted: Collection[str] = (),
    ) -> TestRun:
        """See `swe_env.grading.runs.Runner.run`; nothing can be told of `distrusted` here."""
        del distrusted
        line = " ".join([command, *(shlex.quote(target) for target in targets)])
        started = time.perf_counter()
        result = sandbox.exec(["bash", "-c", line], timeout=timeout, output_limit=_OUTPUT)
        seconds = time.perf_counter() - started
        if result.exit_code in (126, 127):
            tail = result.output.strip().splitlines()[-1:] or ["it printed nothing"]
            raise GradingError(f"The test command {command!r} could not be run: {tail[0][:300]}.")
        outcomes = self._parse(result.output)
        error = _error(outcomes, result, timeout)
        return TestRun(
            outcomes=outcomes,
            ended=not error,
            error=error,
            output=result.output,
            exit_code=result.exit_code,
            seconds=seconds,
        )

    def files(self, test_ids: Sequence[str], patched: Sequence[str] = ()) -> list[str]:
        """The patched test files, or the file part of each id."""
        named = (test_id.partition("::")[0] for test_id in test_ids)
        return list(dict.fromkeys(patched or named))


def _error(outcomes: dict[str, str], result: ExecResult, timeout: float) -> str:
    if result.timed_out:
        return f"timed out after {timeout:g} s"
    if result.limit:
        return f"killed: it went over the {result.limit} limit"
    if result.exit_code and outcomes and not any(said in _BAD for said in outcomes.values()):
        return f"exit code {result.exit_code} though no failure was printed"
    return ""


def __getattr__(name: str) -> LogRunner:
    """``log_runner:parse_log_…``, for the registry of runners."""
    if name in PARSERS:
        return LogRunner(PARSERS[name])
    raise AttributeError(name)
