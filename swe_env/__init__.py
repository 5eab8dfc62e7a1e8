"""A Gymnasium environment over real repositories: ``gym.make("SWE-v0")``.

Importing registers the environment and nothing else. Gymnasium itself is not imported here (it
takes longer than all of ours): the environment is registered when Gymnasium is, before or after.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from swe_env.errors import SweError

if TYPE_CHECKING:
    from swe_env.env import SWEEnv
    from swe_env.grading import grade
    from swe_env.replay import ReplayBuffer, Trajectory
    from swe_env.sandbox import check_sandbox
    from swe_env.types import Action, Observation, Task, TestReport
    from swe_env.wrappers import RecordTrajectory

__version__ = "0.1.0"

_LAZY = {
    "SWEEnv": "swe_env.env",
    "grade": "swe_env.grading",
    "ReplayBuffer": "swe_env.replay",
    "Trajectory": "swe_env.replay",
    "check_sandbox": "swe_env.sandbox",
    "Action": "swe_env.types",
    "Observation": "swe_env.types",
    "Task": "swe_env.types",
    "TestReport": "swe_env.types",
    "RecordTrajectory": "swe_env.wrappers",
}

__all__ = [
    "Action",
    "Observation",
    "RecordTrajectory",
    "ReplayBuffer",
    "SWEEnv",
    "SweError",
    "Task",
    "TestReport",
    "Trajectory",
    "check_sandbox",
    "grade",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'swe_env' has no attribute {name!r}")


_IDS = {
    "SWE-v0": "",
    "SWE-quickstart-v0": "quickstart",
    "SWE-bench-v0": "swebench:full",
    "SWE-bench-Lite-v0": "swebench:lite",
    "SWE-bench-Verified-v0": "swebench:verified",
    "R2E-Gym-v0": "r2e:full",
    "R2E-Gym-Subset-v0": "r2e:subset",
    "R2E-Gym-Lite-v0": "r2e:lite",
    "SWE-Gym-v0": "swegym:full",
    "SWE-Gym-Lite-v0": "swegym:lite",
    "SWE-smith-v0": "swesmith:full",
    "SWE-rebench-v0": "swerebench:full",
}
"""Environment ids → the task source each stands for; an argument ``tasks`` replaces it."""


@when_imported("gymnasium.envs.registration")
def _register(registration: Any) -> None:
    limits = registration.WrapperSpec(
        "GradeOnTimeLimit", "swe_env.wrappers.limits:GradeOnTimeLimit", {}
    )
    for name, tasks in _IDS.items():
        registration.register(
            id=name,
            entry_point="swe_env.env:SWEEnv",
            max_episode_steps=100,
            # Gymnasium's passive checker breaks for good when the first reset fails (a wrong
            # instance_id): each step then acts, and raises. `check_env` finds what it would.
            disable_env_checker=True,
            additional_wrappers=(limits,),
            kwargs={"tasks": tasks} if tasks else {},
        )
