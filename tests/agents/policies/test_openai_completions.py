"""The `openai-completions` policy against HTTP servers: one told what to say, one with a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.policies import EpisodeOver, make_policy
from agents.policies.conformance import check_policy
from agents.policies.openai_completions import OpenAICompletionsPolicy
from agents.policies.transformers import TransformersPolicy
from swe_env.errors import ConfigError, ModelError
from swe_env.types import INVALID_TOOL
from tests.agents.models import save_tiny
from tests.agents.policies.test_openai_chat import episode, turn
from tests.agents.policies.told_server import ToldServer

CALL = "Look.\n<function=view>\n<parameter=path>a.py</parameter>\n</function>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


class ModelServer(ToldServer):
    """Answers with what a tiny model samples, in the form vLLM gives it."""

    def __init__(self, local):
        super().__init__()
        self.local = local

    def answer(self, asked):
        sampled = self.local._engine.generate(
            asked["prompt"], limit=asked["max_tokens"], seed=(asked["seed"], 0)
        )
        ids = sampled.token_ids
        return completion(
            self.local.tokenizer.decode(ids), ids, asked["prompt"], sampled.logprobs,
            finish="length" if sampled.ended == "length" else "stop",
        )  # fmt: skip


@pytest.fixture
def server():
    with ToldServer() as running:
        yield running
        running.shutdown()


def made(server, folder, **options):
    options = {"base_url": server.url, "retries": 0, "max_new_tokens": 24, **options}
    return OpenAICompletionsPolicy("tiny", folder, **options)


def completion(text, ids=None, prompt=None, logprobs=None, finish="stop", **more):
    said = {"token_logprobs": logprobs, "tokens": [], "top_logprobs": [], "text_offset": []}
    choice = {
        "index": 0, "text": text, "finish_reason": finish, "token_ids": ids,
        "prompt_token_ids": prompt, "logprobs": said if logprobs else None, **more,
    }  # fmt: skip
    return 200, {
        "id": "1", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }  # fmt: skip


def test_its_turns_are_token_for_token_those_of_the_local_model(folder):
    """Greedy, so that both draw the same; prompts, ids and log-probabilities must agree."""
    with (
        TransformersPolicy(
            folder, temperature=0, max_new_tokens=24, dtype="float32", device="cpu"
        ) as local,
        ModelServer(local) as server,
    ):
        remote = made(server, folder, temperature=0.0)
        state = episode()
        for _ in range(3):
            ours, theirs = remote.act(state), local.act(state)
            assert ours["completion"]["token_ids"] == theirs["completion"]["token_ids"]
            assert (
                ours["completion"]["prompt_token_ids"] == theirs["completion"]["prompt_token_ids"]
            )
            assert ours["completion"]["logprobs"] == pytest.approx(theirs["completion"]["logprobs"])
            assert (ours["message"], ours["tool"]) == (theirs["message"], theirs["tool"])
            state = replace(state, turns=[*state.turns, turn(ours, "1: x = 1")])
        assert remote.agent.settings["tokenizer"] == local.agent.settings["tokenizer"]
        check_policy(remote)
        server.shutdown()


def test_the_request_is_made_of_ids_and_stops_where_a_call_ends(server, folder):
    server.answers = [completion(CALL, [1, 2, 3], None, [-1.0, -0.5, 0.0])]
    policy = made(server, folder, top_k=20, prices=(1.0, 1.0))
    action = policy.act(episode())
    (asked,) = server.asked
    assert asked["prompt"] == action["completion"]["prompt_token_ids"]
    assert all(isinstance(token, int) for token in asked["prompt"])
    assert asked["stop"] == ["</function>"]
    assert (asked["return_token_ids"], asked["include_stop_str_in_output"]) == (True, True)
    assert (asked["top_k"], asked["max_tokens"]) == (20, 24)
    assert action["completion"]["logprobs"] == [-1.0, -0.5, 0.0]
    assert action["usage"]["completion_tokens"] == 3
    assert action["usage"]["cost"] == pytest.approx(1e-5)


def test_without_ids_the_text_is_the_turn(server, folder):
    cut = CALL.removesuffix("</function>")
    server.answers = [
        completion(cut, stop_reason="</function>"),
        completion(cut),
        completion("Hm."),
    ]
    policy = made(server, folder, token_ids=False)
    first = policy.act(episode())
    assert (first["tool"], first["message"]) == ("view", CALL)
    assert "completion" not in first
    assert "return_token_ids" not in server.asked[0]
    second = policy.act(episode(turn(first, "1: x = 1")))
    assert (second["tool"], second["arguments"]) == ("view", {"path": "a.py"})
    assert server.asked[1]["prompt"][: len(server.asked[0]["prompt"])] == server.asked[0]["prompt"]
    assert policy.act(episode())["tool"] == INVALID_TOOL


def test_a_full_context_is_a_truncation_that_carries_the_reply(server, folder):
    later = episode(turn({"tool": "view", "arguments": {}, "message": CALL}, "1: x = 1"))
    size = len(made(server, folder)._prompting.prompt(episode()))
    with pytest.raises(ModelError, match="first prompt is too long"):
        made(server, folder, context=size).act(episode())
    with pytest.raises(EpisodeOver, match="tokens"):
        made(server, folder, context=size).act(later)
    server.answers = [completion("I thi", [5, 6], finish="length")] * 2
    with pytest.raises(EpisodeOver, match="tokens") as over:
        made(server, folder, context=size + 2).act(episode())
    assert over.value.action["completion"]["token_ids"] == [5, 6]
    action = made(server, folder).act(episode())
    assert "cut off" in action["arguments"]["reason"]


def test_condensing_needs_a_context_that_is_known(server, folder):
    with pytest.raises(ConfigError, match="give context"):
        made(server, folder, condense=0.5)
    view = {"tool": "view", "arguments": {"path": "a.py"}, "message": CALL}
    state = episode(turn(view, "one " * 400), turn(view, "two"))
    whole = made(server, folder)._prompting.prompt(state)
    server.answers = [completion(CALL, [5, 6])] * 2
    made(server, folder, context=len(whole) + 5, condense=0.9).act(state)
    made(server, folder, context=len(whole) + 5).act(state)
    condensed, kept = (asked["prompt"] for asked in server.asked)
    assert kept == whole
    assert len(condensed) < len(whole) - 300


def test_a_server_that_says_something_else_is_the_machinerys_failure(server, folder):
    server.answers = [
        completion(CALL),
        completion(CALL, [1], [9, 9]),
        completion(CALL, [1, 2], None, [-1.0]),
        completion(CALL, [1], None, [None]),
        completion(CALL, ["a"]),
        (500, {"error": {"message": "CUDA out of memory"}}),
        (400, {"error": {"message": "maximum context length is 9 tokens"}}),
    ]
    policy = made(server, folder)
    for words in (
        "no token ids", "another prompt", "1 log-probabilities for 2", "cannot be read",
        "'a' for a token id", "out of memory",
    ):  # fmt: skip
        with pytest.raises(ModelError, match=words):
            policy.act(episode())
    with pytest.raises(EpisodeOver, match="tokens"):
        policy.act(episode(turn({"tool": "view", "arguments": {}, "message": CALL}, "1: x = 1")))


def test_it_is_made_by_name_and_keeps_its_address_to_itself(folder):
    options = {"base_url": "http://secret.example/v1", "api_key": "sk-secret", "tokenizer": folder}
    policy = make_policy("openai-completions", model="tiny", **options)
    assert "secret" not in repr(policy.agent)
    with pytest.raises(ConfigError):
        make_policy("openai-completions", model="tiny", **{**options, "tokenizer": "/nowhere"})
