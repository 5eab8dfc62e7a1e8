"""What was recorded: trajectories and the buffer that keeps them."""

from swe_env.replay.buffer import ReplayBuffer
from swe_env.replay.frames import Damage, Row
from swe_env.replay.trajectory import (
    Agent,
    Branch,
    Metrics,
    Step,
    StepObservation,
    ToolCall,
    Trajectory,
)
from swe_env.replay.upkeep import Merged, Rewritten, compact, merge, repair
from swe_env.replay.view import Stats, View

__all__ = [
    "Agent",
    "Branch",
    "Damage",
    "Merged",
    "Metrics",
    "ReplayBuffer",
    "Rewritten",
    "Row",
    "Stats",
    "Step",
    "StepObservation",
    "ToolCall",
    "Trajectory",
    "View",
    "compact",
    "merge",
    "repair",
]
