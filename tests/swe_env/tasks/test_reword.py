"""A model's words are taken unless they tell the answer; what it is shown holds none of it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from swe_env.errors import ModelError
from swe_env.tasks.reword import Server, reword

GOOD = "Discount is added\n\nI called total with a discount of 10 and got 110.0 instead of 90.0."
LEAK = "Discount is added\n\nUse return amount * (100 - discount) / 100."


class Writer:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.prompts = []

    def __call__(self, prompt):
        self.prompts.append(prompt)
        return self.answers.pop(0)


def test_the_words_are_the_models_and_the_original_is_kept(shop_task):
    writer = Writer(GOOD)
    (made,) = reword([shop_task], writer, name="m", workers=1)
    assert made.problem_statement == GOOD + "\n"
    assert made.metadata["statement"] == {"by": "m", "observed": shop_task.problem_statement}
    assert shop_task.problem_statement in writer.prompts[0]
    assert "100 - discount" not in writer.prompts[0]
    assert "test_discount" not in writer.prompts[0]


def test_a_leak_is_asked_for_again_and_then_the_template_stays(shop_task):
    (mended,) = reword([shop_task], Writer(LEAK, GOOD), workers=1)
    assert mended.problem_statement == GOOD + "\n"
    writer = Writer(LEAK, "See test_discount.", "x" * 3000)
    (kept,) = reword([shop_task], writer, workers=1)
    assert kept.problem_statement == shop_task.problem_statement
    assert kept.metadata["statement"] == {"by": "template", "refused": "is too long"}
    assert "quotes the answer" in writer.prompts[1]


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path))
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body))
            message = {"role": "assistant", "content": GOOD}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            data = json.dumps({**answer, "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}/v1", seen
    serving.shutdown()
    serving.server_close()


def test_a_server_is_asked_once_for_a_statement(shop_task, server):
    url, seen = server
    for _ in range(2):
        (made,) = reword([shop_task], Server(url, "m"), workers=1)
        assert made.problem_statement == GOOD + "\n"
    ((path, body),) = seen
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0.0)


def test_a_server_that_is_not_there_is_one_sentence(shop_task, monkeypatch, tmp_path):
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="did not answer"):
        reword([shop_task], Server("http://127.0.0.1:9/v1", "m", timeout=2), workers=1)
