"""`run_tests`: the visible tests, with a short structured summary."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import re

from swe_env.errors import GradingError, ToolError
from swe_env.grading.runs import TestRun
from swe_env.tools.base import ToolContext, ToolResult, tool
from swe_env.tools.targets import meant, words
from swe_env.types import Outcome

_FAILED = "failed_tests"
_SHOWN = 10
_LINES = 6
_NONE = "No tests ran."
_ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}\b")
"""Addresses differ from run to run; the same actions must give the same observation."""
_TOOK = re.compile(r"^=* ?(.*?) in \d+\.\d+s\b.*$", re.MULTILINE)
"""Pytest's last line, with how long the run took."""
_COUNTED = (
    Outcome.FAILED,
    Outcome.ERROR,
    Outcome.PASSED,
    Outcome.SKIPPED,
    Outcome.XFAIL,
    Outcome.XPASS,
)


@tool
def run_tests(ctx: ToolContext, targets: str | list[str] = "") -> ToolResult:
    """Run the repository's tests and summarise what failed.

    Args:
        targets: Test files, folders or ids, separated by blanks or as a list; "failed" for those
            that failed the last time; empty for all.
    """
    given = words(targets) if isinstance(targets, str) else map(str.strip, targets)
    wanted = [word for word in given if word]
    if wanted == ["failed"]:
        wanted = list(ctx.state.get(_FAILED, ()))
        if not wanted:
            return ToolResult("No test failed the last time; leave targets empty to run all.")
    option = next((word for word in wanted if word.startswith("-")), None)
    if option is not None:
        raise ToolError(f"targets takes paths and test ids, not the option {option}.")
    for word in wanted:
        path = word.partition("::")[0]
        if "/" in path or path.endswith(".py"):
            entry = ctx.sandbox.files.stat(path)
            if entry is None:
                raise ToolError(f"there is no test file {path!r}: look for it with view or search.")
    try:
        run = ctx.run_tests(wanted)
    except GradingError as error:
        # In the agent's own workspace that is most often its own doing; grading will tell.
        raise ToolError(f"the tests could not be started. {error}") from error
    text = summary(run)
    if run.outcomes or not wanted:
        ctx.state[_FAILED] = run.failed
    else:
        hint = meant(ctx.sandbox.files, wanted, ctx.state.get(_FAILED, ()))
        text = text.replace(_NONE, _NONE + hint, 1)
    return ToolResult(text, 0 if run.ended and not run.failed and run.outcomes else 1)


def summary(run: TestRun) -> str:
    """Counts, then each failure with its last lines."""
    counts = [f"{n} {name}" for name in _COUNTED if (n := run.count(name))]
    parts = [", ".join(counts) if counts else _NONE]
    for test_id in run.failed[:_SHOWN]:
        lines = run.details.get(test_id, "").splitlines()[-_LINES:]
        parts.append("\n".join([f"{run.outcomes[test_id].upper()} {test_id}", *lines]))
    if len(run.failed) > _SHOWN:
        parts.append(f"[... {len(run.failed) - _SHOWN} more failures ...]")
    if run.error:
        parts.append(f"The run did not finish: {run.error}.")
        if not run.failed:
            lines = _TOOK.sub(r"\1", run.output).strip().splitlines()
            parts.append("\n".join(lines[-_LINES:]))
    return _ADDRESS.sub("0x...", "\n\n".join(part for part in parts if part))
