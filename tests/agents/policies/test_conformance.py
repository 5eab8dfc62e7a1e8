import itertools

import pytest

import agents
from agents.policies import BasePolicy, make_policy
from agents.policies.transformers import TransformersPolicy
from swe_env.errors import PolicyError
from swe_env.replay import Agent
from swe_env.types import Action
from tests.agents.models import save_tiny

LOOK = Action(tool="view", arguments={"path": "shop.py"})


@pytest.mark.parametrize(
    ("name", "options"),
    [("random", {}), ("oracle", {}), ("scripted", {"actions": [LOOK, LOOK]})],
)
def test_our_own_policies_conform(name, options):
    agents.check_policy(make_policy(name, **options))


def test_a_local_model_conforms(tmp_path):
    with TransformersPolicy(save_tiny(tmp_path), max_new_tokens=4, dtype="float32") as policy:
        agents.check_policy(policy, turns=2)


class Counting(BasePolicy):
    def __init__(self):
        self.count = itertools.count()

    def act(self, episode):
        return {"tool": "view", "arguments": {"path": f"{next(self.count)}.py"}}


class Scribbling(BasePolicy):
    def act(self, episode):
        episode.first["text"] += "!"
        return LOOK


class Raising(BasePolicy):
    def act(self, episode):
        raise KeyError("x")


class Unnamed(BasePolicy):
    agent = Agent(name="x", settings={"model": object()})

    def act(self, episode):
        return LOOK


def given(action):
    class Given(BasePolicy):
        def act(self, episode):
            return action

    return Given()


TOKENS = {"token_ids": [1, 2], "prompt_token_ids": [1], "logprobs": [-1.0, -2.0]}


@pytest.mark.parametrize(
    ("policy", "promise"),
    [
        (object(), "no policy"),
        (Counting(), "keeps no state"),
        (Scribbling(), "changed the episode"),
        (Raising(), "raised KeyError"),
        (Unnamed(), "written as JSON"),
        (given("view"), "for an action"),
        (given({"tool": "view"}), "no arguments"),
        (given({"tool": "veiw", "arguments": {}}), "not among the tools"),
        (given({**LOOK, "completion": {"token_ids": []}}), "no token_ids"),
        (given({**LOOK, "completion": {**TOKENS, "logprobs": [-1.0]}}), "1 logprobs for 2"),
        (given({**LOOK, "completion": {**TOKENS, "logprobs": [-1.0, 0.5]}}), "above 0"),
        (given({**LOOK, "completion": {"token_ids": [1]}}), "no prompt_token_ids"),
        (given({**LOOK, "completion": {"token_ids": None}}), "no token_ids"),
        (given({**LOOK, "usage": {"completion_tokens": "9"}}), "completion_tokens"),
    ],
)
def test_a_broken_promise_is_named(policy, promise):
    with pytest.raises(PolicyError, match=promise):
        agents.check_policy(policy)
