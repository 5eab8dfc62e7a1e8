import numpy as np
import pytest
import torch

from agents.policies.sampling.draw import Sampling, draw
from swe_env.errors import ConfigError

LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 3.0])


def frequencies(sampling, rows=20_000):
    uniforms = torch.tensor(np.random.default_rng(0).random(rows))
    tokens, _ = draw(LOGITS.expand(rows, -1), uniforms, sampling)
    return torch.bincount(tokens, minlength=5) / rows


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 1.0, "top_k": 0, "top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"temperature": 0.5, "top_k": 3, "top_p": 1.0}, [0, 2, 4]),
        ({"temperature": 1.0, "top_k": 0, "top_p": 0.9}, [0, 2, 4]),
        ({"temperature": 2.0, "top_k": 4, "top_p": 0.6}, [0, 4]),
    ],
)
def test_tokens_come_as_often_as_the_truncated_distribution_says(settings, kept):
    wanted = torch.full((5,), -torch.inf)
    wanted[kept] = LOGITS[kept] / settings["temperature"]
    torch.testing.assert_close(
        frequencies(Sampling(**settings)), wanted.softmax(-1), atol=0.015, rtol=0
    )


def test_logprobs_are_those_of_the_unmodified_distribution():
    sampling = Sampling(temperature=0.3, top_k=2, top_p=0.9)
    tokens, logprobs = draw(LOGITS.expand(64, -1), torch.rand(64), sampling)
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(-1)[tokens])


def test_temperature_zero_takes_the_most_probable():
    tokens, _ = draw(LOGITS.expand(3, -1), torch.rand(3), Sampling(temperature=0))
    assert tokens.tolist() == [4, 4, 4]


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_never_draw_an_impossible_token(uniform):
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    for top_k, top_p in ((0, 1.0), (3, 1.0), (0, 0.99)):
        sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
        tokens, _ = draw(logits, torch.tensor([uniform], dtype=torch.float64), sampling)
        assert tokens.item() in (1, 2)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 1.5}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        Sampling(**wrong)
