import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Glm4Config, Glm4ForCausalLM

from learners.ops.rotary import _Rotation, lean_rotary, learned_positions
from tests.learners.models import tiny

IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral"])
def test_the_usual_rotation_is_taken_over_and_gives_the_same(family):
    model = tiny(family)
    home = sys.modules[type(model).__module__]
    with torch.no_grad():
        home.apply_rotary_pos_emb = getattr(  # whoever was here before in this process
            home.apply_rotary_pos_emb, "own", home.apply_rotary_pos_emb
        )
        before = model(IDS).logits
        assert lean_rotary(model) == 1
        assert isinstance(home.apply_rotary_pos_emb, _Rotation)
        assert lean_rotary(model) == 1  # once is enough
        assert not isinstance(home.apply_rotary_pos_emb.own, _Rotation)
        assert torch.equal(model(IDS).logits, before)


def test_another_rotation_stays():
    """GLM-4 rotates neighbours, and half of the width."""
    config = Glm4Config(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    assert lean_rotary(Glm4ForCausalLM(config)) == 0


@pytest.mark.parametrize(
    ("kind", "learned"),
    [
        ("gpt2", True), ("opt", True), ("gptj", True), ("gpt_bigcode", True),
        ("llama", False), ("gemma3_text", False), ("gpt_neox", False), ("bloom", False),
    ],
)  # fmt: skip
def test_learned_positions_are_told_from_computed_ones(kind, learned):
    config = AutoConfig.for_model(
        kind, vocab_size=66, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, rotary_dim=8, word_embed_proj_dim=64,
    )  # fmt: skip
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config).get_decoder()
    assert learned_positions(decoder, 64) is learned
