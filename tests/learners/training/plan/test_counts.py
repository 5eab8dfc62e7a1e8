import os

import pytest
import torch

from learners.training.config import TrainConfig
from learners.training.plan.counts import adapted, count, meta_model
from learners.training.plan.models import KNOWN, known_model, model_config
from swe_env.errors import ConfigError
from tests.learners.models import tiny_llama

CACHE = os.environ.get("SWE_ENV_CACHE")


def counts_of(name, method="lora", **changes):
    config = TrainConfig(model=name, buffer="", out="", **changes)
    return count(adapted(meta_model(model_config(name)), config, method))


@pytest.fixture(scope="module")
def qwen3_4b():
    return counts_of("Qwen3-4B")


@pytest.fixture(scope="module")
def qwen3_coder():
    return counts_of("Qwen3-Coder-30B-A3B", lora_targets=["q_proj", "v_proj"])


def test_qwen3_4b_has_what_its_shapes_say(qwen3_4b):
    width, inner, layers, vocabulary = 2560, 9728, 36, 151_936
    attention = width * 128 * (32 + 8 + 8) + 32 * 128 * width
    layer = attention + 3 * width * inner + 2 * width + 2 * 128
    assert qwen3_4b.total == vocabulary * width + layers * layer + width  # the head is tied
    assert round(qwen3_4b.total / 1e9, 1) == 4.0  # the model card's figures
    assert round((qwen3_4b.total - vocabulary * width) / 1e9, 1) == 3.6
    assert qwen3_4b.active == qwen3_4b.total
    assert qwen3_4b.head == vocabulary * width
    # r (in + out) for each linear layer of the decoder
    outs = [32 * 128, 8 * 128, 8 * 128, width, inner, inner, width]
    ins = [width, width, width, 32 * 128, width, width, inner]
    assert qwen3_4b.adapter == layers * sum(8 * (i + o) for i, o in zip(ins, outs, strict=True))
    assert qwen3_4b.trainable == qwen3_4b.adapter


def test_qwen3_coder_has_as_many_weights_as_its_checkpoint_has_bytes(qwen3_coder):
    assert qwen3_coder.total == 61_064_245_248 // 2  # total_size of its safetensors index, bf16
    assert qwen3_coder.experts == 48 * 128 * 3 * 2048 * 768
    assert qwen3_coder.active == qwen3_coder.total - qwen3_coder.experts * 120 // 128
    assert 3.3e9 <= qwen3_coder.active < 3.4e9  # the model card: "3.3B activated"
    assert qwen3_coder.adapter == 48 * 8 * ((2048 + 4096) + (2048 + 512))


def test_gemma_3_27b_counts_text_and_vision():
    counts = counts_of("gemma-3-27b", lora_targets=r".*language_model.*q_proj")
    embedding = 262_208 * 5376
    layer = 5376 * 128 * (32 + 16 + 16) + 4096 * 5376 + 3 * 5376 * 21_504 + 4 * 5376 + 2 * 128
    text = embedding + 62 * layer + 5376
    assert round((text - embedding) / 1e9, 1) == 25.6  # technical report, arXiv 2503.19786
    assert round(embedding / 1e9, 1) == 1.4
    assert counts.total - text == pytest.approx(0.417e9, rel=0.02)  # the vision tower
    assert counts.adapter == 62 * 8 * (5376 + 4096)
    assert counts.layer_adapter == 8 * (5376 + 4096)
    assert counts.outside >= embedding + 5376


def test_glm_4_5_air_is_106_billion():
    counts = counts_of("GLM-4.5-Air", lora_targets=["q_proj"])
    attention = 4096 * 128 * (96 + 8 + 8) + 128 * (96 + 8 + 8) + 96 * 128 * 4096
    expert = 3 * 4096 * 1408
    sparse = attention + 129 * expert + 128 * 4096 + 2 * 4096
    dense = attention + 3 * 4096 * 10_944 + 2 * 4096
    assert counts.total == 45 * sparse + dense + 4096 + 2 * 151_552 * 4096
    assert int(counts.total / 1e9) == 106
    # "12B active" leaves the two embeddings out
    assert round((counts.active - 2 * 151_552 * 4096) / 1e9) == 12
    assert counts.outside == 2 * 151_552 * 4096 + 4096  # both embeddings, the last norm
    assert counts.layer_total == sparse
    assert counts.merged_active == 0


def test_experts_get_an_adapter_each_as_peft_makes_it():
    layers, experts, width, inner, r = 48, 128, 2048, 768, 8
    counts = counts_of("Qwen3-Coder-30B-A3B")  # all-linear
    attention = r * ((width + 4096) + 2 * (width + 512) + (4096 + width))
    gate_up = 2 * r * experts * (width + 2 * inner)  # two fused projections, twice the rank
    down = r * experts * (inner + width)
    router = r * (width + experts)
    assert counts.adapter == layers * (attention + gate_up + down + router)
    assert counts.merged_active == layers * 8 * 3 * width * inner


def test_families_name_the_experts_of_a_token_differently():
    from transformers import AutoConfig

    shared = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    config = AutoConfig.for_model(
        "gemma4_text", **shared, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32,
        hidden_size_per_layer_input=0, num_kv_shared_layers=0,
    )  # fmt: skip
    settings = TrainConfig(model="", buffer="", out="", lora_targets=["q_proj"])
    counts = count(adapted(meta_model(config), settings, "lora"))
    assert counts.experts == 2 * 4 * 3 * 64 * 32
    assert counts.active == counts.total - counts.experts // 2
    config.top_k_experts = None
    with pytest.raises(ConfigError, match="has 4 experts and does not say to how many"):
        count(adapted(meta_model(config), settings, "lora"))


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "down_proj"], r".*layers\.1\..*_proj"]
)
def test_an_adapter_is_as_large_as_the_one_that_peft_makes(targets):
    from peft import LoraConfig, get_peft_model

    base = tiny_llama()
    lora = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    real = get_peft_model(tiny_llama(), lora)
    config = TrainConfig(model="", buffer="", out="", lora_r=4, lora_targets=targets)
    planned = count(adapted(meta_model(base.config), config, "lora"))
    assert planned.total == sum(p.numel() for p in base.parameters())
    assert planned.adapter == sum(p.numel() for p in real.parameters() if p.requires_grad)


def test_full_training_trains_everything():
    base = tiny_llama(tie_word_embeddings=False)
    config = TrainConfig(model="", buffer="", out="")
    counts = count(adapted(meta_model(base.config), config, "full"))
    assert counts.trainable == counts.total == sum(p.numel() for p in base.parameters())
    assert counts.adapter == 0


def test_a_plan_leaves_random_numbers_as_they_were():
    config = TrainConfig(model="", buffer="", out="")
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = meta_model(tiny_llama(seed=3).config)
    torch.manual_seed(3)
    adapted(model, config, "lora")
    assert torch.equal(torch.rand(2), expected)


def test_the_table_names_a_source_for_every_model():
    assert all(known.source and "/" in known.source for known in KNOWN.values())
    assert known_model("Qwen/Qwen3-4B") is known_model("qwen3-4b") is not None
    assert known_model("someone/Qwen3-4B") is None


def test_a_folder_of_the_same_name_goes_before_the_table(tmp_path, monkeypatch):
    tiny_llama().config.save_pretrained(tmp_path / "qwen3-4b")
    monkeypatch.chdir(tmp_path)
    assert model_config("qwen3-4b").model_type == "llama"


def test_a_model_that_cannot_be_had_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="holds no model"):
        model_config(str(tmp_path))


def test_no_weights_are_made():
    model = meta_model(model_config("glm-4.5-air"))
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.model
def test_smollm2_is_counted_as_it_is(monkeypatch):
    from agents.policies.hub import load

    if CACHE is None:  # the models' own cache, not the empty one of these tests
        monkeypatch.delenv("SWE_ENV_CACHE")
    else:
        monkeypatch.setenv("SWE_ENV_CACHE", CACHE)
    real, _ = load("smollm2")
    counts = counts_of("smollm2")
    assert counts.total == sum(p.numel() for p in real.parameters()) == 134_515_008
