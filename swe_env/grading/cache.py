"""The same patch of the same task gets the same verdict without running the tests again."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import replace

import msgspec

from swe_env.cache import digest
from swe_env.grading.verdict import grade
from swe_env.sandbox.base import Limits, SandboxFactory
from swe_env.types import Task, TestReport

_reports: dict[Hashable, TestReport] = {}
_locks: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)


def grade_once(
    task: Task,
    patch: str,
    *,
    sandbox: SandboxFactory | str = "auto",
    timeout: float = 600.0,
    limits: Limits | None = None,
    from_diff: bool = False,
) -> TestReport:
    """`grade`, remembered for the life of this process; concurrent askers wait for one run.

    Meant for many attempts at few tasks with tests that do not flake (`swe tasks validate` tells).
    A report with an `error` (a time-out, a run that ended early) is not kept: the next may be
    another. A remembered verdict has 0 `seconds`: no tests were run for it.
    """
    key = (digest(msgspec.to_builtins(task)), patch, sandbox, timeout, limits, from_diff)
    with _locks[key]:
        if key in _reports:
            return replace(copy.deepcopy(_reports[key]), seconds=0.0)
        report = grade(
            task, patch, sandbox=sandbox, timeout=timeout, limits=limits, from_diff=from_diff
        )
        if not report.error:
            _reports[key] = copy.deepcopy(report)
        return report
