"""`check_policy`: what every policy promises, proven on made-up episodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import msgspec

from agents.policies.base import Episode, EpisodeOver, Policy, Turn, well_formed
from swe_env.errors import ConfigError, InfrastructureError, PolicyError
from swe_env.tools import toolset
from swe_env.types import INVALID_TOOL, Action, Observation, Recipe, Task

_TASK = Task(
    instance_id="check-policy-1",
    repo="check/policy",
    base_commit="0" * 40,
    problem_statement="`shop.total([100], discount=10)` gives 110.0, but the right result is 90.0.",
    patch=(
        "diff --git a/shop.py b/shop.py\n--- a/shop.py\n+++ b/shop.py\n@@ -1,2 +1,2 @@\n"
        " def total(prices, discount=0):\n-    return sum(prices) * (100 + discount) / 100\n"
        "+    return sum(prices) * (100 - discount) / 100\n"
    ),
    environment=Recipe(),
)
_SHOWN = "1\tdef total(prices, discount=0):\n2\t    return sum(prices) * (100 + discount) / 100\n"
_EPISODES = 4


def check_policy(policy: Policy, *, turns: int = 3) -> None:
    """Prove that a policy keeps the promises of `agents.policies.Policy`.

    It is asked for a few turns of made-up episodes: no environment is started. A policy may end an
    episode by `EpisodeOver`; a server that does not answer is no fault of the policy.

    Args:
        policy: the policy, made as it will be used.
        turns: turns asked for in each episode.

    Raises:
        PolicyError: names the promise that is broken.
        InfrastructureError: the policy's model or server did not answer, so nothing is known.
    """
    if not isinstance(policy, Policy):
        raise PolicyError(f"{policy!r} is no policy: it needs `agent`, `privileged` and `act`.")
    _check_agent(policy)
    episodes = [_episode(policy, seed) for seed in range(_EPISODES)]
    alone = [list(_play(policy, episode, turns)) for episode in episodes]
    with ThreadPoolExecutor(_EPISODES) as threads:
        together = list(threads.map(lambda episode: list(_play(policy, episode, turns)), episodes))
    for episode, first, second in zip(episodes, alone, together, strict=True):
        if [_call(action) for action in first] != [_call(action) for action in second]:
            raise PolicyError(
                f"The same episode (seed {episode.seed}) was answered otherwise the second time, "
                "from several threads: a policy keeps no state and derives every draw from "
                "episode.seed and the turn."
            )


def _check_agent(policy: Policy) -> None:
    try:
        msgspec.json.encode(policy.agent)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"The policy's agent cannot be written as JSON: {error}.") from error
    if policy.agent != policy.agent:
        raise PolicyError("The policy's agent differs from one look to the next.")
    prompt: Callable[..., Any] | None = getattr(policy, "system_prompt", None)
    if prompt is not None and not isinstance(prompt(toolset("default").schemas), str):
        raise PolicyError("The policy's system_prompt(tools) gives no text.")


def _episode(policy: Policy, seed: int) -> Episode:
    first = Observation(text=_TASK.problem_statement, tool="", exit_code=0, steps_left=20)
    return Episode(
        task=_TASK.public(),
        first=first,
        tools=toolset("default").schemas,
        seed=seed,
        answer=_TASK if policy.privileged else None,
    )


def _play(policy: Policy, episode: Episode, turns: int) -> Iterator[Action]:
    """The policy's actions, every call answered by the same file."""
    for _ in range(turns):
        before = copy.deepcopy(episode)
        try:
            action = well_formed(policy.act(episode))
        except (EpisodeOver, InfrastructureError, PolicyError) as ended:
            if isinstance(ended, EpisodeOver):
                return
            raise
        except ConfigError as error:
            raise PolicyError(f"The policy is not ready to act: {error}") from error
        except Exception as error:
            raise PolicyError(
                f"The policy raised {type(error).__name__} ({error}): act raises PolicyError, "
                "ModelError or EpisodeOver."
            ) from error
        if episode != before:
            raise PolicyError("The policy changed the episode it was shown.")
        _check_tokens(action)
        _check_tool(action, episode)
        yield action
        if action["tool"] == "submit":
            return
        seen = Observation(
            text=_SHOWN, tool=action["tool"], exit_code=0, steps_left=19 - len(episode.turns)
        )
        episode = replace(episode, turns=(*episode.turns, Turn(action=action, observation=seen)))


def _check_tool(action: Action, episode: Episode) -> None:
    known = {tool["function"]["name"] for tool in episode.tools} | {INVALID_TOOL}
    if not action["tool"]:
        raise PolicyError("The action names no tool.")
    if action["tool"] not in known and "message" not in action:
        raise PolicyError(
            f"The policy calls {action['tool']!r}, which is not among the tools it was offered "
            f"({', '.join(sorted(known))})."
        )


def _check_tokens(action: Action) -> None:
    completion = action.get("completion")
    if completion is None:
        return
    ids = completion.get("token_ids")
    if not ids:
        raise PolicyError("The action's completion has no token_ids: leave the completion out.")
    if any(value > 0 for value in completion.get("logprobs", [])):
        raise PolicyError("A logprob is above 0: they are natural logarithms of probabilities.")
    if not completion.get("prompt_token_ids"):
        raise PolicyError("The completion has token_ids and no prompt_token_ids.")


def _call(action: Action) -> tuple[str, dict[str, Any], str]:
    return action["tool"], action["arguments"], action.get("message", "")
