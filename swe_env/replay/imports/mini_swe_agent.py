"""mini-swe-agent's ``.traj.json`` files, of version 1 (fenced commands) and 2 (function calls)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from swe_env.replay.imports.common import Conversation, Ending, agent, text_of, trajectory
from swe_env.replay.trajectory import Trajectory
from swe_env.types import INVALID_TOOL, Failure

_FENCE = re.compile(r"```(?:mswea_bash_command|bash|sh)[ \t]*\n(.*?)\n?```", re.DOTALL)
_RETURNED = re.compile(r"<returncode>(-?\d+)</returncode>")
LIMITS = {
    "LimitsExceeded": "steps",
    "TimeExceeded": "time",
    "RepeatedFormatError": "stuck",
    "UserInterruption": "stopped",
}
"""Its ends that no submission made → our truncations."""


class _Info(msgspec.Struct):
    exit_status: str | None = None
    submission: str | None = None
    mini_version: str = ""
    config: dict[str, Any] = {}
    model_stats: dict[str, Any] = {}


class Mini(msgspec.Struct):
    """The parts of a file that are read."""

    messages: list[dict[str, Any]]
    info: _Info
    instance_id: str = ""
    trajectory_format: str = ""


def convert(data: Mini, *, instance_id: str, attempt: int, resolved: bool | None) -> Trajectory:
    """One file as a trajectory; a reply that could not be parsed is a call of `invalid`."""
    found = Conversation()
    messages = [m for m in data.messages if m.get("role") != "exit"]
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if _is_reply(message):
            answers: list[dict[str, Any]] = []
            while at < len(messages) and _is_answer(messages[at], bool(answers)):
                answers.append(messages[at])
                at += 1
            _act(found, message, answers)
        elif reply := _extra(message).get("model_response"):
            # A malformed reply is kept only inside the message that says what is wrong with it.
            _refuse(found, text_of(reply), text_of(message.get("content")))
        else:
            role = "system" if message.get("role") == "system" else "user"
            found.said(role, text_of(message.get("content")))
    info = data.info
    return trajectory(
        instance_id=instance_id,
        attempt=attempt,
        agent=agent("mini-swe-agent", info.mini_version, _model(info.config), {}),
        conversation=found,
        ending=_ending(info.exit_status or "", data.messages),
        patch=_patch(info.submission or ""),
        resolved=resolved,
        source={
            "format": data.trajectory_format or "mini-swe-agent",
            "exit_status": info.exit_status,
            "model_stats": info.model_stats,
        },
    )


def thought(message: dict[str, Any]) -> str:
    """A reply's text without the commands in it."""
    text = _text(message)
    return text if message.get("tool_calls") else _FENCE.sub("", text).strip()


def _is_reply(message: dict[str, Any]) -> bool:
    return message.get("role") == "assistant" or message.get("object") == "response"


def _is_answer(message: dict[str, Any], answered: bool) -> bool:
    """Several tool messages answer one reply; of user messages only the first does."""
    if message.get("role") == "tool" or message.get("type") == "function_call_output":
        return True
    is_user = message.get("role") == "user" and "model_response" not in _extra(message)
    return is_user and not answered


def _act(found: Conversation, message: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    actions = _extra(message).get("actions")
    if actions is None:  # version 1: the command is in the text alone
        commands = _FENCE.findall(_text(message))
    else:
        commands = [str(action.get("command", "")) for action in actions]
    calls: list[tuple[str, dict[str, Any]]] = [("bash", {"command": c}) for c in commands]
    texts = [text_of(answer.get("content", answer.get("output"))) for answer in answers]
    observation = "\n\n".join(texts) if answers else None
    found.acted(thought(message), calls, observation, _exit_code(answers, observation or ""))


def _refuse(found: Conversation, reply: str, reason: str) -> None:
    found.acted(reply, [(INVALID_TOOL, {"reason": reason})], reason, 1)


def _exit_code(answers: list[dict[str, Any]], text: str) -> int:
    for answer in reversed(answers):
        code = _extra(answer).get("returncode")
        if isinstance(code, int):
            return code
    said = _RETURNED.search(text)
    return int(said.group(1)) if said else 0


def _text(message: dict[str, Any]) -> str:
    if message.get("object") == "response":
        outputs = [item for item in message.get("output", ()) if item.get("type") == "message"]
        return "\n".join(text_of(item.get("content")) for item in outputs)
    return text_of(message.get("content"))


def _extra(message: dict[str, Any]) -> dict[str, Any]:
    extra = message.get("extra")
    return extra if isinstance(extra, dict) else {}


def _ending(status: str, messages: list[dict[str, Any]]) -> Ending:
    if status == "Submitted":
        return Ending(finished=True)
    if status in LIMITS:
        return Ending(truncation=LIMITS[status])
    if not status:
        return Ending(truncation="unknown")
    # Any other status is the name of an exception that ended the run.
    said = text_of(messages[-1].get("content")) if messages else ""
    failure = Failure(kind="imported", message=f"mini-swe-agent ended with {status}: {said[:500]}")
    return Ending(truncation="failure", failure=failure)


def _patch(submission: str) -> str:
    return submission if "diff --git" in submission or "\n+++ " in submission else ""


def _model(config: dict[str, Any]) -> str:
    model = config.get("model")
    name = model.get("model_name") if isinstance(model, dict) else None
    return name if isinstance(name, str) else ""
