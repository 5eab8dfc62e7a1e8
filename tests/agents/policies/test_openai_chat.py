"""The `openai` policy against a real HTTP server that answers as told."""

from __future__ import annotations

import json

import pytest

from agents.policies import Episode, Turn, make_policy
from agents.policies.openai_chat import OpenAIPolicy
from swe_env.errors import ConfigError, ModelError
from swe_env.types import INVALID_TOOL, Observation, PublicTask
from tests.agents.policies.told_server import ToldServer

TOOL = {
    "type": "function",
    "function": {
        "name": "view",
        "description": "Show a file.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}
TASK = PublicTask(
    **dict.fromkeys(["instance_id", "repo", "base_commit", "problem_statement"], "x"),
    **dict.fromkeys(["hints_text", "version", "test_command"], ""),
)


@pytest.fixture
def server():
    with ToldServer() as running:
        yield running
        running.shutdown()


def made(server, **options):
    return OpenAIPolicy("tiny", **{"base_url": server.url, "retries": 0, **options})


def answer(content="", calls=(), finish="stop", **more):
    made = [
        {"id": "1", "type": "function", "function": {"name": name, "arguments": text}}
        for name, text in calls
    ]
    message = {"role": "assistant", "content": content, "tool_calls": made or None}
    extra = {key: more.pop(key) for key in ("token_ids", "logprobs") if key in more}
    choice = {"index": 0, "finish_reason": finish, "message": message, **extra}
    return 200, {
        "id": "1", "object": "chat.completion", "created": 0, "model": "tiny",
        "choices": [choice], **more,
    }  # fmt: skip


def episode(*turns):
    first = Observation(text="Issue: f fails.", tool="", exit_code=0, steps_left=9)
    return Episode(task=TASK, first=first, tools=[TOOL], turns=turns, seed=3)


def turn(action, text):
    seen = Observation(text=text, tool="view", exit_code=0, steps_left=8)
    return Turn(action=action, observation=seen)


def test_a_function_call_is_the_action_and_comes_back_in_the_next_request(server):
    server.answers = [
        answer("Look.", [("view", '{"path": "a.py"}'), ("view", "{}")]),
        answer("", [("view", "")]),
    ]
    policy = made(server, top_k=20, max_new_tokens=50)
    first = policy.act(episode())
    assert first == {"tool": "view", "arguments": {"path": "a.py"}, "message": "Look."}
    policy.act(episode(turn(first, "1: x = 1")))
    system, user, said, seen = server.asked[1]["messages"]
    assert (system["role"], user["content"]) == ("system", "Issue: f fails.")
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"path": "a.py"}
    assert seen["tool_call_id"] == said["tool_calls"][0]["id"]
    assert seen["content"] == "1: x = 1"
    assert server.asked[0]["tools"] == [TOOL]
    assert (server.asked[0]["top_k"], server.asked[0]["max_tokens"]) == (20, 50)
    assert server.asked[0]["seed"] != server.asked[1]["seed"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer("I am done."), "calls no tool"),
        (answer("", [("view", "{path")]), "no JSON object"),
        (answer("", [("view", "[1]")]), "no JSON object (a list): [1]"),
        (answer("", [("view", "[" * 1100)]), "levels of brackets"),
        (answer("", [("view", '{"path": NaN}')]), "not JSON compliant"),
        (answer("", [("view", r'{"path": "\ud83d"}')]), "surrogate"),
        (answer("Let me thi", finish="length"), "cut off"),
    ],
)
def test_a_reply_without_a_readable_call_says_what_is_wrong(server, reply, reason):
    server.answers = [reply, answer("", [("view", "{}")])]
    policy = made(server)
    action = policy.act(episode())
    assert action["tool"] == INVALID_TOOL
    assert reason in action["arguments"]["reason"]
    policy.act(episode(turn(action, action["arguments"]["reason"])))
    assert [m["role"] for m in server.asked[1]["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [("", "view {path"), ("Look.", "Look.\nview {path")])
def test_a_call_that_cannot_be_read_goes_back_as_the_model_wrote_it(server, text, said):
    server.answers = [answer(text, [("view", "{path")]), answer("", [("view", "{}")])]
    policy = made(server)
    action = policy.act(episode())
    policy.act(episode(turn(action, action["arguments"]["reason"])))
    assert server.asked[1]["messages"][2] == {"role": "assistant", "content": said}


@pytest.mark.parametrize("format", ["tools", "r2e"])
def test_an_empty_reply_goes_back_as_a_message_that_servers_take(server, format):
    server.answers = [answer(" "), answer("")]
    policy = made(server, format=format)
    action = policy.act(episode())
    assert action["message"] == " "
    policy.act(episode(turn(action, action["arguments"]["reason"])))
    assert server.asked[1]["messages"][2] == {"role": "assistant", "content": "(empty reply)"}


def test_a_text_format_is_written_and_read_in_the_reply(server):
    call = "Look.\n<function=view><parameter=path>a.py</parameter></function>"
    server.answers = [answer(call), answer(call)]
    policy = made(server, format="r2e")
    first = policy.act(episode())
    assert (first["tool"], first["arguments"]) == ("view", {"path": "a.py"})
    policy.act(episode(turn(first, "1: x = 1")))
    assert server.asked[1]["messages"][2:] == [
        {"role": "assistant", "content": call},
        {"role": "user", "content": "1: x = 1"},
    ]
    assert "tools" not in server.asked[1]


def test_tokens_are_recorded_as_the_server_gives_them(server):
    said = {
        "content": [
            {"token": t, "logprob": p, "top_logprobs": []} for t, p in [("a", -1.5), ("b", -0.5)]
        ]
    }
    call = [("view", "{}")]
    server.answers = [
        answer("", call, token_ids=[5, 6], prompt_token_ids=[1, 2, 3], logprobs=said),
        answer("", call, token_ids=[5, 6, 7], prompt_token_ids=[1, 2, 3], logprobs=said),
        answer("", call),
    ]
    policy = made(server, token_ids=True, logprobs=True)
    assert policy.act(episode())["completion"] == {
        "token_ids": [5, 6], "prompt_token_ids": [1, 2, 3], "logprobs": [-1.5, -0.5],
    }  # fmt: skip
    assert server.asked[0]["return_token_ids"] is True
    assert "logprobs" not in policy.act(episode())["completion"]  # two figures for three tokens
    with pytest.raises(ModelError, match="gives no token ids"):
        policy.act(episode())


def test_without_a_server_or_key_it_says_so(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="base_url"):
        make_policy("openai", model="x")


def test_key_and_address_are_not_recorded():
    policy = OpenAIPolicy("tiny", base_url="http://secret.example/v1", api_key="sk-secret")
    assert "secret" not in repr(policy.agent)


def test_what_a_turn_took_is_counted_and_priced(server):
    usage = {"prompt_tokens": 2000, "completion_tokens": 100, "total_tokens": 2100}
    server.answers = [answer("", [("view", "{}")], usage=usage)] * 2 + [answer("no call")]
    assert made(server).act(episode())["usage"] == {"prompt_tokens": 2000, "completion_tokens": 100}
    priced = made(server, prices=[0.5, 2.0])
    assert priced.act(episode())["usage"]["cost"] == pytest.approx(0.0012)
    assert "usage" not in priced.act(episode())
    for prices in ([1.0], [-1.0, 2.0]):
        with pytest.raises(ConfigError, match="two numbers"):
            made(server, prices=prices)
