import math

import pytest

from agents.policies.base import EpisodeOver, well_formed
from swe_env.errors import PolicyError

LOOK = {"tool": "view", "arguments": {}}
SAMPLED = {"token_ids": [1, 2], "prompt_token_ids": [1], "logprobs": [-1.0, -2.0]}


def test_none_counts_as_left_out():
    usage = {"prompt_tokens": 3, "completion_tokens": None, "cost": None}
    found = well_formed(
        {**LOOK, "message": None, "usage": usage, "completion": {**SAMPLED, "logprobs": None}}
    )
    assert found == {
        **LOOK, "usage": {"prompt_tokens": 3},
        "completion": {"token_ids": [1, 2], "prompt_token_ids": [1]},
    }  # fmt: skip
    assert well_formed({**LOOK, "completion": {"token_ids": None}})["completion"] == {}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"completion": {**SAMPLED, "token_ids": 7}}, "token_ids are of type int: give a list"),
        ({"completion": {**SAMPLED, "token_ids": [1, None]}}, "token_ids are no list of whole"),
        ({"completion": {**SAMPLED, "token_ids": [1.5, 2]}}, "token_ids are no list of whole"),
        ({"completion": {**SAMPLED, "prompt_token_ids": ["a"]}}, "prompt_token_ids are no list"),
        ({"completion": {**SAMPLED, "prompt_token_ids": [-1]}}, "prompt_token_ids hold -1"),
        ({"completion": {**SAMPLED, "prompt_token_ids": [1 << 70]}}, "no token's id"),
        ({"completion": {**SAMPLED, "logprobs": -1.0}}, "logprobs are of type float"),
        ({"usage": {"completion_tokens": "9"}}, "usage has '9' for completion_tokens"),
        ({"usage": {"completion_tokens_details": {"reasoning_tokens": 3}}}, "tokens_details"),
        ({"usage": {"cost": math.nan}}, "usage has nan for cost"),
        ({"usage": {"prompt_tokens": -1}}, "usage has -1 for prompt_tokens"),
    ],
)
def test_what_cannot_be_recorded_or_counted_is_named(more, problem):
    with pytest.raises(PolicyError, match=problem):
        well_formed({**LOOK, **more})
    with pytest.raises(PolicyError, match=problem):
        EpisodeOver("tokens", {**LOOK, **more})
