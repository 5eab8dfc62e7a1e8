"""What `SWEEnv` is given, checked: each wrong argument is one sentence."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from swe_env.errors import ConfigError
from swe_env.sandbox.base import Limits
from swe_env.tools import Toolset, toolset
from swe_env.types import INVALID_TOOL, Action, Task

RENDER_MODES = ("ansi", "human")
MOST_STEPS = (1 << 31) - 1
_MOST_SECONDS = 1_000_000.0
_MOST_BYTES = 1 << 62
_OPTIONS = ("instance_id",)
FORM = 'An action is {"tool": name, "arguments": {...}}; nothing was done.'
"""What a model reads whose action is none."""


def seconds(name: str, value: object) -> float:
    """A time-out.

    Raises:
        ConfigError: it is no number above 0, or longer than a wait can be.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and 0 < number <= _MOST_SECONDS:
            return number
    raise ConfigError(
        f"{name} is a number of seconds above 0 and at most {_MOST_SECONDS:,.0f}, not {value!r}."
    )


def whole(name: str, value: object, most: int = _MOST_BYTES, *, what: str = "number") -> int:
    """A whole number from 1 to `most`.

    Raises:
        ConfigError: it is none.
    """
    if (
        isinstance(value, numbers.Integral)
        and not isinstance(value, bool)
        and 1 <= int(value) <= most
    ):
        return int(value)
    end = f" and at most {most:,}" if most < _MOST_BYTES else ""
    raise ConfigError(f"{name} is a whole {what}, at least 1{end}, not {value!r}.")


def flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name} is True or False, not {value!r}.")


def word(name: str, value: object, example: str) -> str:
    """The name of something.

    Raises:
        ConfigError: it is no text.
    """
    if isinstance(value, str):
        return value
    raise ConfigError(f"{name} is a name such as {example!r}, not {value!r}.")


def render_mode(value: object) -> str | None:
    """One of `RENDER_MODES`, or None.

    Raises:
        ConfigError: it is another.
    """
    if value is None or (isinstance(value, str) and value in RENDER_MODES):
        return value
    known = " or ".join(repr(mode) for mode in RENDER_MODES)
    raise ConfigError(f"render_mode is {known} or None, not {value!r}.")


def tools(names: object) -> Toolset:
    """The tools of these names.

    Raises:
        ConfigError: a name is unknown, there is none, or this is no list of names.
    """
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"tools is a preset such as 'default' or a list of names, not {names!r}.")
    if not given:
        raise ConfigError(
            "tools is empty, so that nothing could be done or submitted: name a preset such as "
            "'default', or tools with 'submit' among them."
        )
    return toolset(given)


def tasks(source: object) -> str | list[Task]:
    """A task source's name, or the tasks themselves.

    Raises:
        ConfigError: it is neither, or there is no task.
    """
    if isinstance(source, str):
        return source
    if not isinstance(source, Iterable) or isinstance(source, (Mapping, bytes)):
        raise ConfigError(
            f"tasks is a task source such as 'quickstart' or 'jsonl:PATH', or a list of tasks, "
            f"not {source!r}."
        )
    given = list(source)
    for task in given:
        if not isinstance(task, Task):
            raise ConfigError(
                f"tasks is a list of Task objects, as swe_env.tasks.load gives them; one of these "
                f"is {task!r:.80}."
            )
    if not given:
        raise ConfigError("tasks is an empty list: an environment needs at least one task.")
    return given


def limits(overrides: object) -> Limits:
    """The sandbox's limits with these in place of their defaults.

    Raises:
        ConfigError: a name is unknown, or a value is no whole number above 0.
    """
    if overrides is None:
        return Limits()
    if not isinstance(overrides, Mapping):
        raise ConfigError(
            f"limits is a mapping such as {{'memory': {2 << 30}}}, not {overrides!r}."
        )
    for name in overrides:
        if name not in Limits.__dataclass_fields__:
            raise ConfigError(
                f"limits: there is no limit {name!r}. {_near(name, Limits.__dataclass_fields__)}"
            )
    what = {"processes": "number", "output": "number of characters"}
    return Limits(
        **{
            name: whole(f"limits[{name!r}]", value, what=what.get(name, "number of bytes"))
            for name, value in overrides.items()
        }
    )


def instance_id(options: object) -> str | None:
    """What ``reset(options=…)`` asks for: the task of that id, or None for any.

    Raises:
        ConfigError: there is another option, or its value is no text.
    """
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"reset's options are a mapping such as {{'instance_id': '…'}}, not {options!r}."
        )
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(f"reset has no option {name!r}. {_near(name, _OPTIONS)}")
    wanted = options.get("instance_id")
    if wanted is None or isinstance(wanted, str):
        return wanted
    raise ConfigError(f"reset's option instance_id is a task's id, a text, not {wanted!r}.")


def action(given: object) -> Action:
    """The action; of what is no mapping, a call that is answered by what an action is."""
    if isinstance(given, Mapping):
        return cast(Action, given)
    return {"tool": INVALID_TOOL, "arguments": {"reason": f"{given!r:.200} is none. {FORM}"}}


def _near(name: Any, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
