"""Every exception of the project, in one tree.

SweError                   the root: catch this to catch everything below
├── ConfigError            a setting or argument is wrong
├── TaskError              a task or task source is unknown, malformed or cannot be built
│   ├── RecipeError        a task's Python environment could not be built
│   └── UnsupportedTask    a task is sound, but nothing here can run its kind of tests
├── PatchError             a patch does not apply
│   └── PatchRefused       a patch reaches outside the workspace, or is too large to apply
├── ToolError              a tool was called wrongly: its message goes to the model
├── PolicyError            a policy broke: its own fault, recorded, not retried
├── ReplayError            a replay buffer or record is damaged or of an unknown schema
└── InfrastructureError    the machinery failed, not the agent: kept out of learning and scores
    ├── SandboxError       a sandbox could not be started, or was lost
    ├── GradingError       the tests could not be run at all
    └── ModelError         a model or its server did not answer

A message is one sentence that says what failed, where, and what to do next.
"""

from __future__ import annotations


class SweError(Exception):
    """Root of the project's exceptions."""


class ConfigError(SweError):
    """A setting or argument is wrong."""


class TaskError(SweError):
    """A task or task source is unknown, malformed or cannot be built."""


class RecipeError(TaskError):
    """A task's Python environment could not be built."""


class UnsupportedTask(TaskError):
    """A task is sound, but nothing here can run its kind of tests."""


class PatchError(SweError):
    """A patch does not apply."""


class PatchRefused(PatchError):
    """A patch reaches outside the workspace, into `.git`, or is too large to apply."""


class ToolError(SweError):
    """A tool was called wrongly; the message is shown to the model and nothing is raised."""


class PolicyError(SweError):
    """A policy broke; the attempt is recorded as the policy's failure and not retried."""


class ReplayError(SweError):
    """A replay buffer or a record in it is damaged, or of a schema this version does not know."""


class InfrastructureError(SweError):
    """The machinery failed, not the agent; `kind` names the part for reports and retries."""

    kind = "infrastructure"


class SandboxError(InfrastructureError):
    """A sandbox could not be started, or was lost."""

    kind = "sandbox"


class GradingError(InfrastructureError):
    """The tests could not be run at all (not: they ran and failed)."""

    kind = "grading"


class ModelError(InfrastructureError):
    """A model or its server did not answer."""

    kind = "model"
