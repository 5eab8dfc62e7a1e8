"""Rows for LLaMA-Factory, in its ShareGPT form, and the entry for its ``dataset_info.json``.

LLaMA-Factory wants turns that alternate strictly, human first, and it looks at one reply where a
row is a preference: of KTO rows it scores the last turn only, of pairs it takes one turn a side. A
pair therefore becomes the conversation up to where the two first differ, and the next reply of
each. Learn from whole trajectories with `swe train` or TRL.
"""

from __future__ import annotations

import json
from typing import Any

from swe_env.errors import ConfigError
from swe_env.replay.export.conversation import Message, messages, same_start, verdict
from swe_env.replay.trajectory import Trajectory

_TAGS = {"user": "human", "tool": "human", "assistant": "gpt"}


def llamafactory_sft(trajectory: Trajectory) -> dict[str, Any]:
    """A row for supervised fine-tuning; every ``gpt`` turn is learned."""
    return _row(messages(trajectory))


def llamafactory_kto(trajectory: Trajectory) -> dict[str, Any]:
    """A row for KTO; ``kto_tag`` is whether the task was resolved.

    Raises:
        ConfigError: the record has no verdict (never graded, or the machinery failed).
    """
    return {**_row(messages(trajectory)), "kto_tag": verdict(trajectory)}


def llamafactory_preference(chosen: Trajectory, rejected: Trajectory) -> dict[str, Any]:
    """A row for DPO: the common beginning and the first replies that differ.

    Raises:
        ConfigError: they don't share their first state, or the first difference is no reply (the
            same call was answered otherwise), or there is none.
    """
    same_start(chosen, rejected)
    one, other = _turns(messages(chosen))[1], _turns(messages(rejected))[1]
    both = list(zip(one, other, strict=False))
    at = next((k for k, (a, b) in enumerate(both) if a != b), len(both))
    if at == len(both) or one[at]["from"] != "gpt" or other[at]["from"] != "gpt":
        raise ConfigError(
            f"The two trajectories of {chosen.instance_id} have no reply in which they first "
            "differ: they make no pair of single turns."
        )
    row = _row(messages(chosen))
    return {**row, "conversations": one[:at], "chosen": one[at], "rejected": other[at]}


def dataset_info(kind: str, name: str, file_name: str) -> dict[str, Any]:
    """The entry of ``dataset_info.json`` for a file of ``sft``, ``kto`` or ``preference`` rows."""
    columns = {"messages": "conversations", "system": "system"}
    if kind == "kto":
        columns["kto_tag"] = "kto_tag"
    if kind == "preference":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    entry: dict[str, Any] = {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": columns,
    }
    if kind == "preference":
        entry["ranking"] = True
    return {name: entry}


def _row(conversation: list[Message]) -> dict[str, Any]:
    system, turns = _turns(conversation)
    return {"conversations": turns, "system": system}


def _turns(conversation: list[Message]) -> tuple[str, list[dict[str, str]]]:
    """(system prompt, turns that alternate): neighbours of one side become one turn."""
    system = [m["content"] for m in conversation if m["role"] == "system"]
    turns: list[dict[str, str]] = []
    for message in conversation:
        if message["role"] == "system":
            continue
        tag, text = _TAGS[message["role"]], _text(message)
        if turns and turns[-1]["from"] == tag:
            turns[-1]["value"] += "\n\n" + text
        else:
            turns.append({"from": tag, "value": text})
    return "\n\n".join(system), turns


def _text(message: Message) -> str:
    """A message with its calls written out: rows here have no place for them."""
    calls = [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
    return "\n".join([text for text in (message["content"],) if text] + calls)
