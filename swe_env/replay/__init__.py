"""What was recorded: trajectories and the buffer that keeps them."""

from swe_env.replay.buffer import ReplayBuffer
from swe_env.replay.frames import Damage, Row
from swe_env.replay.trajectory import (
    Agent,
    Metrics,
    Step,
    StepObservation,
    ToolCall,
    Trajectory,
)
from swe_env.replay.view import Stats, View

__all__ = [
    "Agent",
    "Damage",
    "Metrics",
    "ReplayBuffer",
    "Row",
    "Stats",
    "Step",
    "StepObservation",
    "ToolCall",
    "Trajectory",
    "View",
]
