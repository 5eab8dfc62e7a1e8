"""What a policy is: an object with `act`; everything it may look at is in the `Episode`."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import msgspec

from swe_env.errors import ModelError, PolicyError
from swe_env.replay.trajectory import Agent
from swe_env.types import Action, Observation, PublicTask, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One action and what came back."""

    action: Action
    observation: Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """All a policy sees: policies keep no state of their own between turns.

    So one policy object serves many episodes at once from many threads, and an episode can be
    continued from any of its turns.
    """

    task: PublicTask
    first: Observation
    """The observation of `reset`: the issue."""
    tools: Sequence[dict[str, Any]]
    """Schemas of the tools offered (OpenAI function-calling form)."""
    turns: Sequence[Turn] = ()
    seed: int = 0
    """Differs between attempts; a policy that samples derives every draw from it and the turn."""
    answer: Task | None = field(default=None, repr=False)
    """The full task, gold patch included; only for a policy whose `privileged` is True."""

    @property
    def observation(self) -> Observation:
        """The latest observation."""
        return self.turns[-1].observation if self.turns else self.first


@runtime_checkable
class Policy(Protocol):
    """Chooses the next action. Must be safe to call from several threads."""

    @property
    def agent(self) -> Agent:
        """Recorded in every trajectory."""
        ...

    @property
    def privileged(self) -> bool:
        """Whether `Episode.answer` is filled in (the oracle); such rollouts are marked."""
        ...

    def act(self, episode: Episode) -> Action:
        """The next action.

        Raises:
            PolicyError: the policy cannot go on; ends the episode as the policy's own failure.
            ModelError: the model's server failed; ends it as an infrastructure failure.
            EpisodeOver: the policy has a reason to stop (context full): a named truncation.
        """
        ...


class EpisodeOver(Exception):
    """A policy ends its episode; the patch so far is graded, the record says `finished: false`."""

    def __init__(self, truncation: str, action: Action | None = None) -> None:
        """Name the limit; `action` is a last reply that was cut off and called nothing.

        Its message and tokens are recorded as the last step, which has no call.

        Raises:
            PolicyError: `action` is malformed (see `well_formed`).
        """
        super().__init__(truncation)
        self.truncation = truncation
        self.action = None if action is None else well_formed(action)


def context_full(turns: int, said: str) -> EpisodeOver | ModelError:
    """What ends an episode whose prompt the model's context does not hold.

    Where no turn was taken yet no agent has filled the context: a limit is wrong, which is the
    machinery's failure and no verdict.

    Args:
        turns: those of the episode so far.
        said: how long the prompt is, and the context.
    """
    if turns:
        return EpisodeOver("tokens")
    return ModelError(
        f"The first prompt is too long already ({said}): lower max_new_tokens, or give the model a "
        "longer context."
    )


class BasePolicy:
    """Defaults for a policy: subclass it and write `act`."""

    privileged: bool = False

    @property
    def agent(self) -> Agent:
        """Recorded in every trajectory; by default just the class's name."""
        return Agent(name=type(self).__name__)

    def system_prompt(self, tools: Sequence[dict[str, Any]]) -> str:  # noqa: ARG002
        """What the policy tells its model before the issue; recorded as the system step."""
        return ""

    def act(self, episode: Episode) -> Action:
        """The next action (see `Policy.act`)."""
        raise NotImplementedError(f"{type(self).__name__} must define act(episode).")


def well_formed(action: object) -> Action:
    """What a policy gave, once it is known to be an action that can be taken and recorded.

    None counts as left out, within `completion` and `usage` too.

    Raises:
        PolicyError: it is none; says what is wrong with it.
    """
    if not isinstance(action, Mapping):
        raise PolicyError(f"The policy gave a {type(action).__name__} for an action: {_FORM}.")
    kept = _given(action)
    for name, kind in _FIELDS.items():
        if name in kept and not isinstance(kept[name], kind):
            raise PolicyError(
                f"The action's {name} is of type {type(kept[name]).__name__}, not "
                f"{kind.__name__.lower()}: {_FORM}."
            )
    if missing := {"tool", "arguments"} - kept.keys():
        raise PolicyError(f"The action has no {' and no '.join(sorted(missing))}: {_FORM}.")
    kept["arguments"] = dict(kept["arguments"])
    try:
        msgspec.json.encode([kept["tool"], kept["arguments"], kept.get("message", "")])
        json.dumps(kept["arguments"], allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PolicyError(f"The action cannot be written as JSON: {error}.") from error
    if "completion" in kept:
        kept["completion"] = _sampled(_given(kept["completion"]))
    if "usage" in kept:
        kept["usage"] = _used(_given(kept["usage"]))
    return cast(Action, kept)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _sampled(completion: dict[str, Any]) -> dict[str, Any]:
    """The completion; a PolicyError for tokens that no record could hold."""
    for name in ("token_ids", "prompt_token_ids", "logprobs"):
        if not isinstance(completion.get(name, []), (list, tuple)):
            kind = type(completion[name]).__name__
            raise PolicyError(f"The action's {name} are of type {kind}: give a list of numbers.")
    for name in ("token_ids", "prompt_token_ids"):
        if name in completion:
            completion[name] = _ids(name, completion[name])
    ids, logprobs = completion.get("token_ids", ()), completion.get("logprobs", ())
    if logprobs and len(logprobs) != len(ids):
        raise PolicyError(
            f"The action's completion has {len(logprobs)} logprobs for {len(ids)} token_ids: give "
            "one for each, or none."
        )
    for place, value in enumerate(logprobs):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise PolicyError(
                f"Log-probability {place} of the action's completion is {value!r}, not a finite "
                "number."
            )
    return completion


def _ids(name: str, values: Sequence[Any]) -> list[int]:
    try:
        ids = [operator.index(value) for value in values]
    except TypeError as error:
        raise PolicyError(f"The action's {name} are no list of whole numbers: {error}.") from error
    if ids and not 0 <= min(ids) <= max(ids) < _VOCABULARY:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise PolicyError(f"The action's {name} hold {wrong}, which is no token's id.")
    return ids


def _used(usage: dict[str, Any]) -> dict[str, Any]:
    """The usage; a PolicyError for what cannot be added up."""
    for name, amount in usage.items():
        if type(amount) not in (int, float) or not 0 <= amount < math.inf:
            raise PolicyError(
                f"The action's usage has {amount!r} for {name}, not a finite number from 0."
            )
    return usage


_VOCABULARY = 1 << 31
"""No model has more token ids."""
_FIELDS = {
    "tool": str,
    "arguments": Mapping,
    "message": str,
    "completion": Mapping,
    "usage": Mapping,
}
_FORM = 'it is {"tool": name, "arguments": {...}}, optionally with "message" and "completion"'
