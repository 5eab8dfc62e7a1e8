"""What a text format is: how a tool call is written in a model's reply and read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from swe_env.errors import ToolError
from swe_env.types import INVALID_TOOL, Action

_DEEPEST = 100
"""Most levels of lists and objects in a call."""
_JSON = json.JSONDecoder()


class ParseError(ToolError):
    """A reply holds no tool call that can be read; the message tells the model how to write one."""


class UnclosedError(ParseError):
    """The reply ends inside an argument, so a stop string there may be a part of it."""


class TextFormat(Protocol):
    """One way to write a tool call as text.

    ``parse(render(action))`` gives back the tool and, as strings, its arguments, for every action
    that `render` accepts.
    """

    name: str
    stop: str
    """Text that completes a call, at which sampling stops; empty where none does.

    An argument may hold it too: `parse` then raises an `UnclosedError`, and `transformers` samples
    on. A server knows nothing of that and cuts the reply there, which makes it a malformed one.
    """

    def system_prompt(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """What to tell the model before the issue: the task, the format and the tools."""
        ...

    def render(self, action: Action) -> str:
        """The reply that makes this call: the action's message, if any, then the call.

        A message that is the whole reply already comes back as it is: ``render(parse(text))`` is
        ``text``.

        Raises:
            ParseError: the format cannot express the call so that it reads back the same.
        """
        ...

    def parse(self, text: str) -> Action:
        """The call in a reply; `message` is the whole reply.

        Raises:
            ParseError: there is none, or it is malformed; an `UnclosedError` where it is cut off
                inside an argument.
        """
        ...


def parse_reply(text_format: TextFormat, text: str) -> Action:
    """The call in a reply; of a malformed reply, the ``invalid`` call.

    The environment answers that with the reason, and counts it.
    """
    try:
        return text_format.parse(text)
    except ParseError as error:
        return Action(tool=INVALID_TOOL, arguments={"reason": str(error)}, message=text)


def call_ends(text_format: TextFormat, text: str) -> bool:
    """Whether the stop string with which `text` ends is no part of an argument."""
    try:
        text_format.parse(text)
    except UnclosedError:
        return False
    except ParseError:
        pass  # malformed for good: more text would not mend it
    return True


def read_json(text: str, start: int | None = None) -> Any:
    """The JSON value that `text` is, or that begins at `start` in it.

    Raises:
        ParseError: there is none, or one that no record could hold (NaN, half of a surrogate pair,
            a number of thousands of digits, brackets without end); says which, in a few words.
    """
    try:
        found = _JSON.decode(text) if start is None else _JSON.raw_decode(text, start)[0]
        if _levels(found) > _DEEPEST:
            raise RecursionError
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except json.JSONDecodeError as error:
        raise ParseError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ParseError(f"more than {_DEEPEST} levels of brackets") from None
    except UnicodeEncodeError:
        raise ParseError("half of a surrogate pair") from None
    except ValueError as error:
        raise ParseError(str(error)) from None
    return found


def _levels(value: object) -> int:
    """How deep lists and objects are nested; without recursion, which has a limit of its own."""
    level, depth = [value], 0
    while level := [x for x in level if isinstance(x, list | dict)]:
        level = [y for x in level for y in (x.values() if isinstance(x, dict) else x)]
        depth += 1
    return depth


def as_text(value: object) -> str:
    """An argument as it stands in a reply: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def reasoning(action: Action) -> str:
    """The action's message as the part of a reply before its call."""
    text = action.get("message", "").strip()
    return f"{text}\n" if text else ""


def written(text_format: TextFormat, action: Action) -> str | None:
    """The action's message when it is the whole reply already (as `parse` gives it), else None.

    So `render` gives back what a policy wrote, call included, and never adds a second call. A
    malformed reply, which became the ``invalid`` call, is such a message too.
    """
    text = action.get("message", "")
    if action["tool"] == INVALID_TOOL:
        return text
    try:
        return text if text and _same_call(text_format.parse(text), action) else None
    except ParseError:
        return None


def require_round_trip(text_format: TextFormat, action: Action, text: str) -> str:
    """`text`, which must read back as `action`.

    Raises:
        ParseError: it does not (an argument or the message holds the format's own marks).
    """
    name = text_format.name
    try:
        found = text_format.parse(text)
    except ParseError as error:
        raise ParseError(f"The format {name} cannot express this call: {error}") from None
    if not _same_call(found, action):
        raise ParseError(
            f"The format {name} cannot express this call to {action['tool']!r}: "
            "its text holds the format's own marks."
        )
    return text


def _same_call(found: Action, wanted: Action) -> bool:
    """Whether tool and arguments are the same, these as text."""
    pairs = [
        {key: as_text(value) for key, value in action["arguments"].items()}
        for action in (found, wanted)
    ]
    return found["tool"] == wanted["tool"] and pairs[0] == pairs[1]


def describe_tools(tools: Iterable[Mapping[str, Any]]) -> str:
    """One line a tool: ``name(required, optional?): first sentence``."""
    lines = []
    for tool in tools:
        function = tool["function"]
        parameters = function.get("parameters", {})
        required = parameters.get("required", ())
        names = [key if key in required else f"{key}?" for key in parameters.get("properties", {})]
        sentence = function.get("description", "").strip().split("\n")[0].split(". ")[0].rstrip(".")
        lines.append(f"{function['name']}({', '.join(names)}): {sentence}")
    return "\n".join(lines)
