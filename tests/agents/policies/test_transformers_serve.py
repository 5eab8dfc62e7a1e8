"""The `openai` policy against a server that is not ours: ``transformers serve``, a tiny model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from transformers import GenerationConfig

from agents.policies import make_policy
from agents.rollouts import Budget, run_rollouts
from swe_env.replay import ReplayBuffer
from tests.agents.models import save_tiny

pytestmark = pytest.mark.xdist_group("transformers-serve")

START_SECONDS = 120.0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, model's name) of a server with a tiny random model."""
    folder = tmp_path_factory.mktemp("serve")
    model = save_tiny(folder / "tiny")
    # The server takes a temperature from a request, but samples only if the model says so.
    GenerationConfig(do_sample=True).save_pretrained(model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    env = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", running, folder / "log")
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        running.kill()
        running.wait()


def wait_for(address, running, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"transformers serve does not answer: {log.read_text()[-2000:]}")


@pytest.mark.parametrize("text_format", ["r2e", "tools"])
def test_a_rollout_over_the_server_is_recorded(served, shop_task, tmp_path, text_format):
    url, model = served
    policy = make_policy(
        "openai", model=model, base_url=url, api_key="none", max_new_tokens=24, retries=0,
        format=text_format,
    )  # fmt: skip
    with ReplayBuffer(tmp_path / "buffer") as buffer:
        report = run_rollouts(
            policy, [shop_task], attempts=2, workers=2, out=tmp_path / "job", buffer=buffer,
            budget=Budget(tokens=60),
            env_kwargs={"sandbox": "process", "max_episode_steps": 4},
        )  # fmt: skip
        found = list(buffer)
    assert (len(report.scored), report.failures) == (2, {})
    for trajectory in found:
        assert trajectory.agent.model_name == model
        assert trajectory.truncation
        usage = trajectory.provenance["usage"]
        assert usage["completion_tokens"] >= 24
        assert usage["prompt_tokens"] > 100  # the whole conversation was sent
    first, second = ([step.message for step in t.agent_steps] for t in found)
    assert first != second  # their seeds differ


def test_a_model_that_is_not_served_is_one_sentence(served, shop_task, tmp_path):
    url, model = served
    policy = make_policy("openai", model="no/such", base_url=url, api_key="none", retries=0)
    with ReplayBuffer(tmp_path / "buffer") as buffer:
        report = run_rollouts(
            policy, [shop_task], out=tmp_path / "job", buffer=buffer, retries=0,
            env_kwargs={"sandbox": "process"},
        )  # fmt: skip
        (found,) = buffer
    assert report.failures == {"model": 1}
    assert model in found.failure.message  # the server says which one it has
    assert "\n" not in found.failure.message
