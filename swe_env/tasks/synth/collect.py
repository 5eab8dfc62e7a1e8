"""Bugs that hold: candidates tried on all workers, their results taken in the candidates' order."""

from __future__ import annotations

import queue
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from swe_env.tasks.mutate import Candidate
from swe_env.tasks.synth.baseline import Baseline
from swe_env.tasks.synth.prober import Prober
from swe_env.tasks.synth.settings import Settings
from swe_env.tasks.synth.trial import Bug, attempt
from swe_env.tasks.synth.tried import Tried

T = TypeVar("T")
R = TypeVar("R")
Bugs: TypeAlias = Generator[Bug, None, None]


def in_order(
    pool: ThreadPoolExecutor, items: Iterator[T], run: Callable[[T], R], *, ahead: int
) -> Generator[tuple[T, Future[R]], None, None]:
    """Run on a pool, `ahead` items at a time; give the items back in their own order.

    Which items are begun depends on how far the pool is, what comes out does not.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        while True:
            for item in items:
                waiting.append((item, pool.submit(run, item)))
                if len(waiting) >= ahead:
                    break
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()


@dataclass(slots=True)
class Collector:
    """Tries candidates, alone and several at once, and drops those that add nothing."""

    baseline: Baseline
    settings: Settings
    probers: Sequence[Prober]
    tried: Tried
    """What earlier runs found is not tried again."""
    reasons: Counter[str] = field(default_factory=Counter)
    """What became of the candidates: a word each, and how many."""
    _kept: Counter[str] = field(default_factory=Counter)
    _seen: set[object] = field(default_factory=set)
    _free: queue.SimpleQueue[Prober] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        for prober in self.probers:
            self._free.put(prober)

    def singles(self, pool: ThreadPoolExecutor, ordered: Iterator[Candidate]) -> Bugs:
        """Bugs of one candidate; `keep` or `drop` must be called for each before the next."""
        wanted = (candidate for candidate in ordered if not self._enough(candidate))
        tried = in_order(pool, wanted, lambda c: self._run((c,)), ahead=2 * len(self.probers))
        for candidate, future in tried:
            if self._enough(candidate):
                future.cancel()
                self.reasons["enough"] += 1
                continue
            result = future.result()
            if isinstance(result, str):
                self.reasons[result] += 1
            elif not self.settings.alike and self._alike(result):
                self.reasons["alike"] += 1
            else:
                yield result

    def combined(self, pool: ThreadPoolExecutor, singles: Bugs) -> Bugs:
        """Bugs of several candidates: each in another function, none hidden by another."""
        groups = self._groups(singles)

        def run(group: tuple[Bug, ...]) -> Bug | str:
            return self._run(tuple(bug.candidate for bug in group))

        for group, future in in_order(pool, groups, run, ahead=2 * len(self.probers)):
            result = future.result()
            if isinstance(result, str):
                self.reasons[result] += 1
            elif not all(set(bug.fail_to_pass) & set(result.fail_to_pass) for bug in group):
                self.reasons["masked"] += 1
            else:
                yield result.made_of(group)

    def keep(self, bug: Bug) -> None:
        """Count a bug that is used."""
        self.reasons["kept"] += 1
        if not bug.parts:  # else its parts were counted
            self._use(bug)

    def drop(self, reason: str) -> None:
        """Count a bug that is not."""
        self.reasons[reason] += 1

    def _use(self, bug: Bug) -> None:
        self._kept.update((_function(bug.candidate), bug.candidate.operator))
        self._seen.update(_behaviour(bug))

    def _run(self, candidates: tuple[Candidate, ...]) -> Bug | str:
        return self.tried.result(candidates, lambda: self._try(candidates))

    def _try(self, candidates: tuple[Candidate, ...]) -> Bug | str:
        prober = self._free.get()
        try:
            return attempt(candidates, prober, self.baseline, functions=self.settings.tests)
        finally:
            self._free.put(prober)

    def _groups(self, singles: Iterator[Bug]) -> Iterator[tuple[Bug, ...]]:
        """Groups of bugs of different functions, in one file where that can be."""
        pool: list[Bug] = []
        for bug in singles:
            self._use(bug)
            near = [other for other in pool if other.candidate.path == bug.candidate.path]
            group = {_function(bug.candidate): bug}
            for other in [*near, *(other for other in pool if other not in near)]:
                if len(group) < self.settings.bugs:
                    group.setdefault(_function(other.candidate), other)
            if len(group) < self.settings.bugs:
                pool.append(bug)
                continue
            pool = [other for other in pool if other not in group.values()]
            yield tuple(group.values())

    def _enough(self, candidate: Candidate) -> bool:
        """Whether no more tasks of that function or operator are wanted."""
        of_function, of_operator = self.settings.per_function, self.settings.per_operator
        full = of_function and self._kept[_function(candidate)] >= of_function
        return bool(full or (of_operator and self._kept[candidate.operator] >= of_operator))

    def _alike(self, bug: Bug) -> bool:
        return any(behaviour in self._seen for behaviour in _behaviour(bug))


def _function(candidate: Candidate) -> str:
    return f"{candidate.path}:{candidate.function}"


def _behaviour(bug: Bug) -> list[object]:
    """What makes two bugs one to a user: the tests they break, with the function or symptoms."""
    shown = tuple(
        tuple(str(facts.get(key, "")) for key in ("exception", "message", "got"))
        for facts in bug.failures.values()
    )
    return [(_function(bug.candidate), bug.fail_to_pass), (shown, bug.fail_to_pass)]
