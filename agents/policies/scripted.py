"""A policy that takes a given list of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from agents.policies.base import BasePolicy, Episode, EpisodeOver
from swe_env.replay.trajectory import Agent
from swe_env.types import Action


class ScriptedPolicy(BasePolicy):
    """Takes its actions in order, then stops (truncation ``script``).

    Args:
        actions: the same for every task, or ``{instance_id: actions}``. An action's ``message`` is
            a thought beside its call.
    """

    def __init__(
        self,
        actions: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        self._actions = actions

    @property
    def agent(self) -> Agent:
        """The script is part of who acted."""
        return Agent(name="scripted", settings={"actions": self._actions})

    def act(self, episode: Episode) -> Action:
        """The action of this turn."""
        actions = self._actions
        if isinstance(actions, Mapping):
            actions = actions.get(episode.task.instance_id, ())
        if len(episode.turns) >= len(actions):
            raise EpisodeOver("script")
        return cast(Action, dict(actions[len(episode.turns)]))
