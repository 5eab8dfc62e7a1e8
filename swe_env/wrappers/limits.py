"""Tells the environment the step limit that `gymnasium.make` put around it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import TimeLimit

from swe_env.types import Action, Observation


class GradeOnTimeLimit(
    gym.Wrapper[Observation, Action, Observation, Action], RecordConstructorArgs
):
    """Makes `TimeLimit`'s truncation the environment's own, so that it is graded and announced.

    ``gym.make(…, max_episode_steps=N)`` wraps without telling what it wraps; this wrapper, part of
    the registered specification, hands the limit on: observations then count `steps_left` down to
    it and the last step carries the report.
    """

    def __init__(self, env: gym.Env[Observation, Action]) -> None:
        """Look for `TimeLimit` below and hand its limit to the unwrapped environment."""
        gym.Wrapper.__init__(self, env)
        RecordConstructorArgs.__init__(self)
        layer: Any = env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, TimeLimit):
                inner: Any = layer.unwrapped
                inner.max_episode_steps = layer._max_episode_steps
                break
            layer = layer.env
