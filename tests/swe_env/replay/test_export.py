import dataclasses
import json

import pytest

from swe_env.errors import ConfigError
from swe_env.replay import Agent, Metrics, ReplayBuffer, Step, StepObservation, ToolCall
from swe_env.replay.export import (
    FORMATS,
    atif,
    messages,
    preds,
    trl_kto,
    trl_preference,
    trl_sft,
    write,
)
from swe_env.types import INVALID_TOOL
from tests.swe_env.replay.conftest import make_trajectory

ISSUE = {"role": "user", "content": "the issue"}
TOOL = {"type": "function", "function": {"name": "view"}}
CALL = {"type": "function", "function": {"name": "view", "arguments": {"path": "a.py"}}}


def said(text):
    return {"role": "assistant", "content": text, "tool_calls": [CALL]}


def test_predictions_are_one_a_task():
    good, other = make_trajectory("a", resolved=True), make_trajectory("b")
    failed = make_trajectory("a", failure="sandbox")
    assert list(preds([failed, good, other])) == [
        {"instance_id": "a", "model_name_or_path": "none", "model_patch": good.patch},
        {"instance_id": "b", "model_name_or_path": "none", "model_patch": ""},
    ]
    with pytest.raises(ConfigError, match="a has several trajectories"):
        list(preds([good, good]))


def test_a_conversation_ends_with_the_assistant():
    one = make_trajectory(text="look")
    assert messages(one) == [ISSUE, said("look")]
    again = dataclasses.replace(one.steps[1], step_id=3, message="again")
    longer = dataclasses.replace(one, steps=(*one.steps, again))
    assert [m["content"] for m in messages(longer)] == ["the issue", "look", "1 é\n2", "again"]


def conversation_of(agent):
    """A thought beside a call, a reply without one, and the last call."""
    one = dataclasses.replace(make_trajectory(text="I look."), agent=agent, tools=(TOOL,))
    lost = ToolCall(function_name=INVALID_TOOL, arguments={"reason": "No call."})
    seen = StepObservation(content="The reply calls no tool.", exit_code=1)
    done = ToolCall(function_name="submit", arguments={})
    more = (
        Step(step_id=3, source="agent", message="Hm.", tool_calls=(lost,), observation=seen),
        Step(step_id=4, source="agent", message="done", tool_calls=(done,)),
    )
    return dataclasses.replace(one, steps=(*one.steps, *more))


@pytest.mark.parametrize(
    "agent",
    [
        Agent(name="openai", settings={"format": "tools"}),
        Agent(name="scripted", settings={"actions": []}),
        Agent(name="r2e-gym", settings={"calls": "apart", "format": "r2e"}),
        Agent(name="Mine"),
    ],
)
def test_a_call_beside_a_thought_is_a_tool_call(agent):
    row = trl_sft(conversation_of(agent))
    assert row["tools"] == [TOOL]
    assert [(m["role"], m["content"]) for m in row["messages"][1:]] == [
        ("assistant", "I look."),
        ("tool", "1 é\n2"),
        ("assistant", "Hm."),
        ("user", "The reply calls no tool."),
        ("assistant", "done"),
    ]
    called = [m["tool_calls"][0]["function"] for m in row["messages"] if "tool_calls" in m]
    assert called == [
        {"name": "view", "arguments": {"path": "a.py"}},
        {"name": "submit", "arguments": {}},
    ]


def test_a_call_that_the_text_spells_out_is_not_written_twice():
    row = trl_sft(conversation_of(Agent(name="transformers", settings={"format": "r2e"})))
    assert not any("tool_calls" in m for m in row["messages"])
    assert {m["role"] for m in row["messages"]} == {"user", "assistant"}
    assert "tools" not in row


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("minari", "preds")])
def test_no_export_loses_the_call_of_an_agent_that_names_no_format(tmp_path, kind):
    with ReplayBuffer(tmp_path / "buffer") as buffer:
        for attempt, text in enumerate(("good", "bad")):
            one = make_trajectory("t", attempt, resolved=not attempt, text=text)
            buffer.append(dataclasses.replace(one, agent=Agent(name="Mine")))
    out = tmp_path / "out"
    write(buffer, kind, out)
    text = "".join(file.read_text() for file in (out.iterdir() if out.is_dir() else [out]))
    exported = 1 if kind.endswith("sft") else 2
    assert text.replace("\\", "").count('"a.py"') == exported


def test_preference_rows_share_the_first_state():
    good, bad = make_trajectory(resolved=True, text="good"), make_trajectory(text="bad")
    assert trl_preference(good, bad) == {
        "prompt": [ISSUE],
        "chosen": [said("good")],
        "rejected": [said("bad")],
    }
    prompted = dataclasses.replace(
        bad, steps=(Step(step_id=1, source="system", message="Be brief."), *bad.steps)
    )
    retooled = dataclasses.replace(bad, tools=({"type": "function"},))
    for other in (prompted, retooled):
        with pytest.raises(ConfigError, match="same state"):
            trl_preference(good, other)


def test_kto_rows_need_a_verdict():
    row = trl_kto(make_trajectory(resolved=True, text="good"))
    assert row["label"] is True
    assert row["completion"] == [said("good")]
    with pytest.raises(ConfigError, match="no verdict"):
        trl_kto(make_trajectory(failure="sandbox"))


def test_atif_carries_whole_prompts_and_links_results_to_calls():
    one = make_trajectory()
    second = dataclasses.replace(
        one.steps[1],
        step_id=3,
        metrics=Metrics(prompt_prefix=5, prompt_token_ids=(9,), completion_token_ids=(7,)),
    )
    document = atif(dataclasses.replace(one, steps=(*one.steps, second)))
    json.dumps(document)
    assert document["schema_version"].startswith("ATIF-v")
    assert [step["step_id"] for step in document["steps"]] == [1, 2, 3]
    assert "metrics" not in document["steps"][0]
    metrics = document["steps"][2]["metrics"]
    assert metrics["prompt_token_ids"] == [1, 2, 3, 4, 5, 9]
    assert metrics["completion_tokens"] == 1
    step = document["steps"][1]
    result = step["observation"]["results"][0]
    assert result["source_call_id"] == step["tool_calls"][0]["tool_call_id"]
    assert document["extra"]["instance_id"] == "task-0"
    assert document["extra"]["report"]["resolved"] is False
