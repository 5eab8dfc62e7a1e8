"""From a package to tasks: candidates in a fair order, tried on all workers, kept in order."""

from __future__ import annotations

import logging
import os
import queue
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

from swe_env.cache import digest
from swe_env.errors import TaskError
from swe_env.repos import file_diff
from swe_env.tasks.mutate import Candidate, Text, candidates, distinct
from swe_env.tasks.statement import Detail, Place, write
from swe_env.tasks.synth.baseline import SUITE_TIMEOUT, Baseline, measure
from swe_env.tasks.synth.package import Package
from swe_env.tasks.synth.prober import PYTEST_OPTIONS, Prober
from swe_env.tasks.synth.trial import Bug, attempt
from swe_env.types import Task

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a label, how many are done, and of how many (0: not known)."""
TEST_COMMAND = " ".join(["python -m pytest", *PYTEST_OPTIONS])
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What kind of tasks to make; equal settings and package give equal tasks."""

    seed: int = 0
    limit: int = 100
    """Most tasks to make."""
    detail: Detail = "line"
    """How much a statement tells; see `swe_env.tasks.statement.write`."""
    min_lines: int = 3
    max_lines: int = 60
    """Length of the functions that get a bug, in lines."""
    single_line: bool = False
    """Only bugs that replace text within one line."""
    per_function: int = 0
    """Most tasks from one function; 0 for no limit."""
    per_operator: int = 0
    """Most tasks from one operator; 0 for no limit."""
    tests: int = 10
    """Most test functions a bug may break."""


def generate(
    package: Package,
    settings: Settings,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Task]:
    """Make tasks from a package.

    Args:
        package: what `swe_env.tasks.synth.package.prepare` gave.
        settings: how many and which.
        workers: processes that run tests; 0 for one per core, at most 8. The result does not
            depend on it.
        progress: called as tasks are found.

    Raises:
        TaskError: the package's tests do not pass, or no bug in it is fit.
    """
    count = workers or min(8, os.cpu_count() or 1)
    with ExitStack() as stack:
        roots = package.recipe.pythonpath
        probers = [
            stack.enter_context(
                Prober(package.checkout, package.environment, roots=roots, seed=seed)
            )
            for seed in (0, 1)
        ]
        try:
            baseline = measure(probers)
        except TaskError as error:
            raise TaskError(f"{package.label} cannot be made into tasks: {error}.") from error
        probers.pop().close()
        for _ in range(count - 1):
            prober = Prober(package.checkout, package.environment, roots=roots, seed=0)
            probers.append(stack.enter_context(prober))
            prober.run(timeout=SUITE_TIMEOUT, warm=True)
        ordered = _ordered(package, baseline, settings)
        tasks = _collect(package, baseline, settings, ordered, probers, progress)
    if not tasks:
        raise TaskError(f"{package.label} gave no task: no fit bug breaks any of its tests.")
    return tasks


def _ordered(package: Package, baseline: Baseline, settings: Settings) -> Iterator[Candidate]:
    """Candidates, one of each function in turn, and within a function one of each operator."""
    rng = random.Random(f"{settings.seed}:{package.commit}")
    queues: dict[tuple[str, str], Iterator[Candidate]] = {}
    twins = _twins(package)
    for path in package.files():
        if path not in baseline.lines or path in twins:
            continue
        data = (package.checkout / path).read_bytes()
        fit = [c for c in candidates(path, data) if _fits(c, data, settings)]
        functions: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in fit:
            functions[candidate.function].append(candidate)
        for name, members in functions.items():
            queues[path, name] = distinct(data, _mixed(members, rng))
    turn = sorted(queues)
    rng.shuffle(turn)
    while turn:
        left = []
        for key in turn:
            following = next(queues[key], None)
            if following is not None:
                left.append(key)
                yield following
        turn = left


def _twins(package: Package) -> set[str]:
    """Files whose content lies in the checkout a second time: the twin would be the answer."""
    seen: dict[bytes, list[str]] = defaultdict(list)
    for path in package.checkout.rglob("*.py"):
        if path.is_file() and path.stat().st_size:
            seen[path.read_bytes()].append(str(path.relative_to(package.checkout)))
    return {name for names in seen.values() if len(names) > 1 for name in names}


def _fits(candidate: Candidate, data: bytes, settings: Settings) -> bool:
    length = candidate.last - candidate.first + 1
    if not settings.min_lines <= length <= settings.max_lines:
        return False
    if not settings.single_line:
        return True
    return all(b"\n" not in edit.text + data[edit.start : edit.end] for edit in candidate.edits)


def _mixed(members: Sequence[Candidate], rng: random.Random) -> list[Candidate]:
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in members:
        groups[candidate.operator].append(candidate)
    for group in groups.values():
        rng.shuffle(group)
    names = sorted(groups)
    rng.shuffle(names)
    mixed = []
    while names:
        mixed += [groups[name].pop() for name in names]
        names = [name for name in names if groups[name]]
    return mixed


def _collect(
    package: Package,
    baseline: Baseline,
    settings: Settings,
    ordered: Iterator[Candidate],
    probers: Sequence[Prober],
    progress: Progress | None,
) -> list[Task]:
    """Try candidates on all workers; take the results in the candidates' order."""
    free: queue.SimpleQueue[Prober] = queue.SimpleQueue()
    for prober in probers:
        free.put(prober)

    def run(candidate: Candidate) -> Bug | str:
        prober = free.get()
        try:
            return attempt(candidate, prober, baseline, functions=settings.tests)
        finally:
            free.put(prober)

    tasks: list[Task] = []
    kept: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    waiting: deque[tuple[Candidate, Future[Bug | str]]] = deque()
    with ThreadPoolExecutor(len(probers)) as pool:
        try:
            while len(tasks) < settings.limit:
                for candidate in ordered:
                    function = f"{candidate.path}:{candidate.function}"
                    if _enough(kept, function, candidate.operator, settings):
                        continue
                    waiting.append((candidate, pool.submit(run, candidate)))
                    if len(waiting) >= 2 * len(probers):
                        break
                if not waiting:
                    break
                candidate, future = waiting.popleft()
                function = f"{candidate.path}:{candidate.function}"
                if _enough(kept, function, candidate.operator, settings):
                    future.cancel()
                    reasons["enough"] += 1
                    continue
                result = future.result()
                task = _task(package, settings, result) if isinstance(result, Bug) else None
                reasons["kept" if task else result if isinstance(result, str) else "untold"] += 1
                if task:
                    kept.update((function, candidate.operator))
                    tasks.append(task)
                    if progress:
                        progress(package.label, len(tasks), settings.limit)
        finally:
            for _, future in waiting:
                future.cancel()
    _log.info("%s: %s", package.label, dict(reasons))
    return tasks


def _enough(kept: Counter[str], function: str, operator: str, settings: Settings) -> bool:
    """Whether no more tasks of that function or operator are wanted."""
    full = settings.per_function and kept[function] >= settings.per_function
    return bool(full or (settings.per_operator and kept[operator] >= settings.per_operator))


def _task(package: Package, settings: Settings, bug: Bug) -> Task | None:
    """Write a bug down as a task; None when its symptom cannot be told."""
    candidate = bug.candidate
    buggy = Text(bug.sources[candidate.path][1].encode())
    line = candidate.line
    if any(edit.text == b"" and edit.start == buggy.offset(line, 0) for edit in candidate.edits):
        line -= 1  # whole lines are gone: what shows is the line before them
    place = Place(candidate.path, candidate.function, line, buggy.line(line))
    statement = write(bug.failures, place, settings.detail)
    if not statement:
        return None
    injected = "".join(file_diff(path, *texts) for path, texts in sorted(bug.sources.items()))
    removed = "".join(file_diff(path, *texts) for path, texts in sorted(bug.tests.items()))
    key = digest([package.source, candidate.key])[:8]
    return Task(
        instance_id=f"{package.label}-{key}",
        repo=package.name,
        version=package.version,
        base_commit=package.commit,
        source=package.source,
        problem_statement=statement,
        base_patch=injected + removed,
        patch="".join(file_diff(p, new, old) for p, (old, new) in sorted(bug.sources.items())),
        test_patch="".join(file_diff(p, new, old) for p, (old, new) in sorted(bug.tests.items())),
        FAIL_TO_PASS=bug.fail_to_pass,
        PASS_TO_PASS=bug.pass_to_pass,
        environment=package.recipe,
        test_command=TEST_COMMAND,
        metadata={
            "generator": "synth",
            "seed": settings.seed,
            "detail": settings.detail,
            "operator": candidate.operator,
            "path": candidate.path,
            "function": candidate.function,
            "line": line,
        },
    )
