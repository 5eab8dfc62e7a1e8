"""The same patch of the same task gets the same verdict without running the tests again."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from typing import Any

import msgspec

from swe_env.cache import digest
from swe_env.grading.verdict import grade
from swe_env.types import Task, TestReport

_reports: dict[tuple[str, str], TestReport] = {}
_locks: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)


def grade_once(task: Task, patch: str, **settings: Any) -> TestReport:
    """`grade`, remembered for the life of this process; concurrent askers wait for one run.

    Meant for many attempts at few tasks with tests that do not flake (`swe tasks validate` tells).
    """
    key = (digest(msgspec.to_builtins(task)), patch)
    with _locks[key]:
        if key not in _reports:
            _reports[key] = grade(task, patch, **settings)
        return copy.deepcopy(_reports[key])
