"""What a whole job may use, and the meter that its episodes share."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields, replace
from typing import Any

from agents.rollouts.report import AttemptResult
from swe_env.errors import ConfigError


def refuse_negative(what: str, budget: Any) -> None:
    """Raise a ConfigError for limits below 0, by name."""
    wrong = [field.name for field in fields(budget) if not getattr(budget, field.name) >= 0]
    if wrong:
        raise ConfigError(f"{what} of {', '.join(wrong)} is below 0: use 0 for no limit.")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobBudget:
    """What a job may use before no more episodes begin; 0 means no limit.

    Episodes that run when a limit is reached play on to their end, so a job uses a little more.
    Steps, tokens and cost are those of the whole job, earlier runs over its folder included (their
    finished attempts; trials that the machinery failed are counted by the run that made them).
    """

    steps: int = 0
    """Environment steps."""
    tokens: int = 0
    """Sampled tokens."""
    seconds: float = 0.0
    """Wall-clock time of one run; the next one begins anew."""
    cost: float = 0.0
    """Dollars, as the policy's prices have it."""

    def __post_init__(self) -> None:
        refuse_negative("A job's budget", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one process of a job has used so far."""

    source: str
    """Names the process; no other has that name."""
    steps: int = 0
    tokens: int = 0
    cost: float = 0.0


class Meter:
    """Counts what a job's episodes use, from many threads."""

    def __init__(self, budget: JobBudget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.steps = self.tokens = 0
        self.cost = 0.0
        self._others: dict[str, Usage] = {}

    @property
    def limited(self) -> bool:
        """Whether there is a limit of what episodes use."""
        return bool(self._budget.steps or self._budget.tokens or self._budget.cost)

    def usage(self, source: str) -> Usage:
        """What was counted, for the meter of another process."""
        with self._lock:
            return Usage(source=source, steps=self.steps, tokens=self.tokens, cost=self.cost)

    def told(self, usage: Usage) -> None:
        """Count what another process has used since it last told."""
        with self._lock:
            before = self._others.get(usage.source, Usage(source=usage.source))
            # Answers may overtake one another on their way.
            steps, tokens = max(before.steps, usage.steps), max(before.tokens, usage.tokens)
            cost = max(before.cost, usage.cost)
            self._others[usage.source] = replace(usage, steps=steps, tokens=tokens, cost=cost)
        self.add(steps=steps - before.steps, tokens=tokens - before.tokens, cost=cost - before.cost)

    def found(self, result: AttemptResult) -> None:
        """Count an attempt that an earlier run has finished."""
        self.add(steps=result.steps, tokens=result.tokens, cost=result.cost)

    def add(self, *, steps: int, tokens: int, cost: float) -> None:
        """Count what was just used."""
        with self._lock:
            self.steps += steps
            self.tokens += tokens
            self.cost += cost

    @property
    def spent(self) -> str:
        """The limit that is reached (``tokens``), or empty."""
        budget = self._budget
        with self._lock:
            used = {
                "steps": (self.steps, budget.steps),
                "tokens": (self.tokens, budget.tokens),
                "seconds": (time.monotonic() - self._began, budget.seconds),
                "cost": (self.cost, budget.cost),
            }
        return next((name for name, (amount, most) in used.items() if most and amount >= most), "")
