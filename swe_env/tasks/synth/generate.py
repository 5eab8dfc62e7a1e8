"""From a package to tasks: candidates in a fair order, tried on all workers, kept in order."""

from __future__ import annotations

import functools
import logging
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

from swe_env.errors import TaskError
from swe_env.tasks.mutate import Candidate, candidates, distinct
from swe_env.tasks.synth.baseline import SUITE_TIMEOUT, Baseline, measure
from swe_env.tasks.synth.collect import Collector
from swe_env.tasks.synth.package import Package
from swe_env.tasks.synth.prober import Prober
from swe_env.tasks.synth.record import task_of
from swe_env.tasks.synth.settings import Progress, Settings
from swe_env.tasks.synth.tried import Tried
from swe_env.types import Task

_log = logging.getLogger(__name__)


def generate(
    package: Package,
    settings: Settings,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Task]:
    """Make tasks from a package; what a stopped run had found out is not tried again.

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
        start = functools.partial(
            Prober,
            package.checkout,
            package.environment,
            roots=package.recipe.pythonpath,
            options=settings.pytest_options,
        )
        probers = [stack.enter_context(start(seed=seed)) for seed in (0, 1)]
        try:
            baseline = measure(probers)
        except TaskError as error:
            raise TaskError(f"{package.label} cannot be made into tasks: {error}.") from error
        probers.pop().close()
        for _ in range(count - 1):
            prober = stack.enter_context(start(seed=0))
            probers.append(prober)
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
        names = settings.operators.split(",") if settings.operators else None
        fit = [c for c in candidates(path, data, names) if _fits(c, data, settings)]
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
    """The first tasks that the candidates give, in the candidates' order."""
    tasks: list[Task] = []
    with (
        closing(Tried(package, baseline, settings)) as tried,
        ThreadPoolExecutor(len(probers)) as pool,
    ):
        collector = Collector(baseline, settings, probers, tried)
        singles = collector.singles(pool, ordered)
        bugs = collector.combined(pool, singles) if settings.bugs > 1 else singles
        for bug in bugs:
            task = task_of(package, settings, bug)
            if task is None:
                collector.drop("untold")
                continue
            collector.keep(bug)
            tasks.append(task)
            if progress:
                progress(package.label, len(tasks), settings.limit)
            if len(tasks) == settings.limit:
                break
        bugs.close()
    if progress and len(tasks) < settings.limit:  # there are no more: the line is finished
        progress(package.label, len(tasks), len(tasks))
    _log.info("%s: %s", package.label, dict(collector.reasons))
    return tasks
