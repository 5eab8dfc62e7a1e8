import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from agents.policies.sampling.attention import NAME, attend, use_attend
from tests.agents.models import VOCABULARY, tiny_model


@pytest.mark.parametrize(("rows", "new", "seen"), [(1, 1, 1), (3, 1, 40), (2, 17, 40), (1, 40, 40)])
def test_attend_is_softmax_attention_over_grouped_heads(rows, new, seen):
    torch.manual_seed(0)
    query = torch.randn(rows, 6, new, 16)
    key, value = torch.randn(2, rows, 2, seen, 16)
    mask = torch.randn(rows, 1, new, seen + 3)
    keys, values = (part.double().repeat_interleave(3, 1) for part in (key, value))
    scores = 0.3 * query.double() @ keys.transpose(2, 3) + mask[..., :seen]
    wanted = (scores.softmax(-1) @ values).transpose(1, 2).float()
    got, _ = attend(None, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_model_uses_it_and_one_that_caps_its_scores_does_not(dtype):
    plain = tiny_model().to(dtype)
    assert use_attend(plain)
    assert plain.config._attn_implementation == NAME
    shape = {
        **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8},
        **{"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"attn_logit_softcapping": 0.5, "pad_token_id": 0, "initializer_range": 1.0},
    }
    capped = Gemma2ForCausalLM(Gemma2Config(**shape)).eval().to(dtype)
    before = capped.config._attn_implementation
    assert not use_attend(capped)
    assert capped.config._attn_implementation == before
