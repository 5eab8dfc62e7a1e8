"""Who acts: policies, rollouts, selection among attempts, and a viewer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.policies import BasePolicy, Episode, Policy, make_policy
    from agents.policies.conformance import check_policy
    from agents.rollouts import run_episode, run_rollouts
    from agents.selection import mean_pass_at_k, select
    from agents.viewer import render_report

PROJECT = "swe-env"
"""Tells this package from the one of the same name that `openai-agents` installs."""

_LAZY = {
    "BasePolicy": "agents.policies",
    "Episode": "agents.policies",
    "Policy": "agents.policies",
    "check_policy": "agents.policies.conformance",
    "make_policy": "agents.policies",
    "mean_pass_at_k": "agents.selection",
    "render_report": "agents.viewer",
    "run_episode": "agents.rollouts",
    "run_rollouts": "agents.rollouts",
    "select": "agents.selection",
}

__all__ = [
    "PROJECT",
    "BasePolicy",
    "Episode",
    "Policy",
    "check_policy",
    "make_policy",
    "mean_pass_at_k",
    "render_report",
    "run_episode",
    "run_rollouts",
    "select",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")
