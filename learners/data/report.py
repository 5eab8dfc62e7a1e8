"""What was left out of a training set, and why: nothing is ever dropped silently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from swe_env.errors import SweError

REASONS = {
    "failure": "an infrastructure failure, no evidence about the agent",
    "unfinished": "cut off by a limit, the agent did not submit",
    "unresolved": "not resolved, so nothing to imitate",
    "no-partner": "its task has no finished trajectory of the other label",
    "other-first-state": "no partner starts from the same system prompt, issue and tools",
    "same-steps": "its possible partners took the same steps",
    "other-generator": "its partners are of other generators, and its task has pairs without it",
    "over-quota": "more than the asked number for its task",
    "no-agent-tokens": "the policy sampled nothing in it",
    "prompt-unknown": "its record is damaged: a prompt keeps tokens that are not there",
    "format": "a call or message in it cannot be written in the text format or chat template",
    "template": "the chat template does not reproduce it token by token",
    "too-long": "longer than max_tokens",
    "one-solution": "its task has fewer than two different correct solutions",
    "prompts-differ": "the two sides of the pair start from different tokens",
}
"""Why a trajectory or pair is left out."""


class Unusable(SweError):
    """A trajectory cannot be trained on; `reason` is a key of `REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class DropReport:
    """Counts of what was kept and what was left out, by reason."""

    seen: int = 0
    """Trajectories looked at."""
    kept: int = 0
    """Samples (pairs or rows) that came out."""
    step_level: int = 0
    """Of those, pairs that are compared from a state later than the first (branches)."""
    cut: int = 0
    """Sequences whose observations were cut to fit."""
    cut_tokens: int = 0
    """What those lost, in tokens."""
    rewritten: int = 0
    """Sequences whose prompts rewrite earlier turns."""
    contexts: int = 0
    """In how many contexts those are learned."""
    templated: int = 0
    """Sequences written by the chat template, as their records lack token ids or lost them."""
    partly: int = 0
    """Of those, the ones whose records have ids for some turns, which are not used."""
    set_aside: int = 0
    """Trajectories that lost theirs: another tokenizer's, or all with ``recorded_ids = false``."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason (a key of `REASONS`) → trajectories, or pairs where a pair was given up."""

    def drop(self, reason: str, count: int = 1) -> None:
        """Count `count` more left out for `reason`."""
        if count:
            self.dropped[reason] += count

    def as_record(self) -> dict[str, Any]:
        """As JSON data, for `from_record`."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> DropReport:
        """What `as_record` gave."""
        return cls(**{**record, "dropped": Counter(record.get("dropped", {}))})

    def __str__(self) -> str:
        """One line: ``12 samples from 40 trajectories; left out: 9 unfinished (…), …``."""
        branches = f" ({self.step_level} step-level)" if self.step_level else ""
        head = f"{self.kept} samples{branches} from {self.seen} trajectories"
        if self.cut:
            head += f"; {self.cut} sequences cut in observations by {self.cut_tokens} tokens"
        if self.rewritten:
            head += (
                f"; {self.rewritten} sequences in {self.contexts} contexts, as prompts rewrite "
                "earlier turns"
            )
        if self.templated:
            some = f" ({self.partly} with ids for some turns only)" if self.partly else ""
            head += f"; {self.templated} sequences written by the chat template{some}"
        if self.set_aside:
            head += f"; token ids of {self.set_aside} trajectories not used"
        if not self.dropped:
            return head
        rest = ", ".join(
            f"{count} {reason} ({REASONS.get(reason, reason)})"
            for reason, count in sorted(self.dropped.items())
        )
        return f"{head}; left out: {rest}"
