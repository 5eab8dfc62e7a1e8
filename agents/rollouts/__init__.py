"""Episodes: one, or many at once; resumable and safe to kill."""

from agents.rollouts.again import Difference, regrade, replay
from agents.rollouts.attempts import attempt_seed
from agents.rollouts.branching import branch, run_branches
from agents.rollouts.budget import JobBudget
from agents.rollouts.engine import run_rollouts
from agents.rollouts.episode import Budget, run_episode
from agents.rollouts.on_ray import RayExecutor
from agents.rollouts.progress import LiveProgress, Progress
from agents.rollouts.report import AttemptResult, RolloutReport

__all__ = [
    "AttemptResult",
    "Budget",
    "Difference",
    "JobBudget",
    "LiveProgress",
    "Progress",
    "RayExecutor",
    "RolloutReport",
    "attempt_seed",
    "branch",
    "regrade",
    "replay",
    "run_branches",
    "run_episode",
    "run_rollouts",
]
