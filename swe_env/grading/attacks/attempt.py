"""`Attempt`: one patch, what it tries, and what the report must say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Content = str | bytes | Path | None
"""Of a file: text, bytes, where a symbolic link points, or None for "deleted"."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One patch against the small project of `swe_env.grading.attacks.project`."""

    name: str
    changes: Mapping[str, Content] = field(default_factory=dict)
    """Path → what the file becomes; git makes the patch."""
    patch: str | Callable[[], str] = ""
    """The patch itself, for what git would not make."""
    named: str = ""
    """What the report's `tampering` or `error` must contain; empty where nothing but the failed
    tests is to be seen."""
