"""Real attempts to cheat the grading, honest solutions beside them, and a run of all of both.

``python -m swe_env.grading.attacks`` prints what becomes of each on this machine.
"""

from __future__ import annotations

from swe_env.grading.attacks.attempt import Attempt
from swe_env.grading.attacks.files import FILES
from swe_env.grading.attacks.forging import FORGING
from swe_env.grading.attacks.honest import HONEST
from swe_env.grading.attacks.reaching import REACHING
from swe_env.grading.attacks.settings import SETTINGS

ATTACKS: tuple[Attempt, ...] = (*SETTINGS, *FORGING, *FILES, *REACHING)
"""Every patch that goes for the grading instead of the bug."""

__all__ = ["ATTACKS", "HONEST", "Attempt"]
