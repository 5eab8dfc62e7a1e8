"""Episodes: one, or many at once; resumable and safe to kill."""

from agents.rollouts.engine import attempt_seed, run_rollouts
from agents.rollouts.episode import Budget, run_episode
from agents.rollouts.progress import LiveProgress, Progress
from agents.rollouts.report import AttemptResult, RolloutReport

__all__ = [
    "AttemptResult",
    "Budget",
    "LiveProgress",
    "Progress",
    "RolloutReport",
    "attempt_seed",
    "run_episode",
    "run_rollouts",
]
