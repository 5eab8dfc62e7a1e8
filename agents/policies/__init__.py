"""Policies by name; a third party's plugs in by entry point or dotted path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agents.policies.base import BasePolicy, Episode, EpisodeOver, Policy, Turn
from swe_env.errors import ConfigError
from swe_env.plugins import Registry

policies: Registry[Callable[..., Policy]] = Registry(
    "policies",
    {
        "scripted": "agents.policies.scripted:ScriptedPolicy",
        "random": "agents.policies.random_calls:RandomPolicy",
        "oracle": "agents.policies.oracle:OraclePolicy",
        "human": "agents.policies.human:HumanPolicy",
        "openai": "agents.policies.openai_chat:OpenAIPolicy",
        "openai-completions": "agents.policies.openai_completions:OpenAICompletionsPolicy",
        "transformers": "agents.policies.transformers:TransformersPolicy",
    },
)
"""Policy classes by name, entry point ``swe_env.policies`` or dotted path."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy by name and options, to be made where it acts: in each Ray worker, for one."""

    name: str
    """A name of `policies`, or ``package.module:Class``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What it is made with."""

    def make(self) -> Policy:
        """The policy (see `make_policy`)."""
        return make_policy(self.name, **self.options)


def make_policy(spec: str | Policy, **options: Any) -> Policy:
    """The policy of that name, made with these options; an object is given back as it is.

    Raises:
        ConfigError: there is no such policy, or it does not take these options.
    """
    if not isinstance(spec, str):
        return spec
    factory = policies.get(spec)
    try:
        policy = factory(**options)
    except TypeError as error:
        raise ConfigError(f"The policy {spec!r} cannot be made with {options}: {error}.") from error
    if not isinstance(policy, Policy):
        raise ConfigError(f"{spec!r} is no policy: it needs `agent`, `privileged` and `act`.")
    return policy


__all__ = [
    "BasePolicy",
    "Episode",
    "EpisodeOver",
    "Policy",
    "PolicySpec",
    "Turn",
    "make_policy",
    "policies",
]
