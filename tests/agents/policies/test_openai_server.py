"""What a server can do wrong, through the `openai` policy: a real HTTP server that answers so."""

from __future__ import annotations

import threading
import time

import pytest

from agents.policies import EpisodeOver
from swe_env.errors import ModelError
from tests.agents.policies.test_openai_chat import answer, episode, made, server, turn
from tests.agents.policies.told_server import ToldServer

__all__ = ["server"]

LOOK = {"tool": "view", "arguments": {}, "message": "Look."}
LATER = episode(turn(LOOK, "1: x = 1"))
CALL = [("view", "{}")]


def error(words, **more):
    return {"error": {"message": words, **more}}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error("This model's maximum context length is 2048 tokens.")),
        (400, error("Too many.", code="context_length_exceeded")),
        (400, error("The input (9 tokens) is longer than the model's context length (8 tokens).")),
        (400, error("The decoder prompt (length 9) is longer than the maximum model length of 8.")),
        (400, error("Input length (9 tokens) exceeds the maximum allowed length (8 tokens).")),
        (400, error("request (9 tokens) exceeds the available context size (8 tokens)")),
        (400, error("Requested tokens (9) exceed context window of 8")),
        (400, error("litellm.ContextWindowExceededError: no")),
        (400, error("prompt is too long: 9 tokens > 8 maximum")),
        (422, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8.")),
        (422, "`inputs` must have less than 8 tokens. Given: 9"),
        (413, "<h1>413 Request Entity Too Large</h1>"),
        (200, error("the request exceeds the available context size", n_ctx=8)),
    ],
)
def test_a_full_context_ends_the_episode_and_not_before_its_first_turn(server, status, body):
    server.answers = [(status, body)] * 2
    with pytest.raises(EpisodeOver, match="tokens"):
        made(server).act(LATER)
    with pytest.raises(ModelError, match=r"first prompt is too long already.*lower max_new_tokens"):
        made(server).act(episode())


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, error("CUDA out of memory"), "out of memory"),
        (401, error("bad key"), "bad key"),
        (400, error("temperature is odd"), "odd"),
        (422, error("messages.0.role: unknown"), "role: unknown"),
        (503, error("the context length is being read"), "being read"),
        (200, {"choices": []}, "without a choice"),
        (200, error("upstream is down"), "upstream is down"),
        (200, '{"choices": [{"mess', "JSONDecodeError"),
        (200, {"choices": [{"index": 0, "finish_reason": "stop"}]}, "cannot be read"),
        (200, {"choices": [{"message": {"content": ["Look."]}}]}, "where a text belongs"),
        (*answer("", [(None, "{}")]), "where a text belongs"),
        (*answer("", finish="error"), "broke off its reply: error"),
        (*answer("Let me", finish="abort"), "broke off its reply: abort"),
    ],
)
def test_every_other_failure_is_the_servers_and_no_verdict(server, status, body, words):
    server.answers = [(status, body)]
    with pytest.raises(ModelError, match=words):
        made(server).act(LATER)


@pytest.mark.parametrize(
    "more",
    [
        {"logprobs": {"content": [{"token": "a", "logprob": None, "top_logprobs": []}]}},
        {"logprobs": {"content": [{"token": "a", "logprob": -1e400, "top_logprobs": []}]}},
        {"token_ids": ["a"]},
        {"usage": {"prompt_tokens": "many"}},
    ],
)
def test_figures_that_are_none_are_the_servers_failure(server, more):
    server.answers = [answer("", CALL, **{"token_ids": [5], "prompt_token_ids": [1], **more})]
    with pytest.raises(ModelError, match="cannot be read"):
        made(server, token_ids=True, logprobs=True).act(episode())


def test_a_passing_failure_is_tried_again_and_a_dead_server_is_said(server):
    server.answers = [(503, {}), answer("", CALL)]
    assert made(server, retries=1).act(episode())["tool"] == "view"
    assert len(server.asked) == 2
    server.shutdown()
    server.server_close()
    with pytest.raises(ModelError, match=r"127\.0\.0\.1.* did not answer"):
        made(server).act(episode())


def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks(server):
    server.answers = [(429, error("slow down"), {"retry-after": "1.2"}), answer("", CALL)]
    began = time.monotonic()
    assert made(server, retries=1).act(episode())["tool"] == "view"
    assert time.monotonic() - began >= 1.2
    server.answers = [(429, error("slow down"), {"retry-after": "0.01"})] * 2
    with pytest.raises(ModelError, match="slow down"):
        made(server, retries=1).act(episode())
    assert len(server.asked) == 4


def test_a_server_that_hangs_fails_after_its_time_and_retries():
    over = threading.Event()

    class Hanging(ToldServer):
        def answer(self, asked):
            over.wait(30)
            return 500, {}

    with Hanging() as hanging:
        with pytest.raises(ModelError, match=r"in time, asked 2 times.*raise timeout"):
            made(hanging, timeout=0.2, retries=1).act(episode())
        over.set()
        assert len(hanging.asked) == 2
        hanging.shutdown()
