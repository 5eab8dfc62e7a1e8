"""Full fine-tuning, adapters on stacked experts, and what QLoRA needs."""

import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agents.policies import hub
from learners import TrainConfig, read_metrics, train
from learners.ops import sequence_logps
from learners.training.model import base_fingerprint, saved_fingerprint
from swe_env.errors import ConfigError
from tests.learners.models import byte_tokenizer, tiny_llama
from tests.learners.training.conftest import train_killed_and_resumed

IDS = torch.arange(40, 60)[None]
MASK = torch.ones_like(IDS, dtype=torch.bool)
MASK[:, 0] = False


def score(model):
    with torch.no_grad():
        return sequence_logps(model, IDS, MASK).logps.item()


@pytest.fixture(scope="module")
def moe_folder(tmp_path_factory):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=2048, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("moe")
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_gives_a_whole_model(settings, dtype):
    settings |= {"mode": "full", "loss": "entropo-dpo", "learning_rate": 1e-3, "dtype": dtype}
    out = train(TrainConfig(**settings)).out
    assert not (out / "adapter_config.json").exists()
    model, tokenizer = hub.load(out, dtype=torch.float32, device="cpu")
    assert hub.fingerprint(tokenizer) == hub.fingerprint(byte_tokenizer())
    moved = dict(model.named_parameters())
    for name, value in tiny_llama().named_parameters():
        assert not torch.equal(moved[name], value), name
    saved = load_file(out / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {getattr(torch, dtype)}
    own = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert own.dtype == own.config.dtype == getattr(torch, dtype)
    assert "lm_head.weight" not in saved  # tied to the embeddings, and still
    assert "library_name: transformers" in (out / "README.md").read_text()
    records = read_metrics(out)
    assert records[-1]["rewards/margins"] > records[0]["rewards/margins"]


def test_the_reference_of_full_fine_tuning_is_the_model_as_it_was(settings):
    """lambda = 0: margins are 0 at the first step, and no second model is there to say so."""
    settings |= {"mode": "full", "loss": "dpo", "max_steps": 2, "label_smoothing": 0.0, "ties": 0}
    first, second = read_metrics(train(TrainConfig(**settings)).out)
    assert first["rewards/margins"] == 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-12)
    assert second["rewards/margins"] != 0


def test_a_killed_full_run_resumes_to_the_same_bytes(settings, tmp_path):
    settings |= {"mode": "full", "loss": "sft", "save_every": 2, "dtype": "bfloat16"}
    whole = train(TrainConfig(**settings)).out
    resumed = train_killed_and_resumed(settings, tmp_path / "killed", after=3)
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_full_fine_tuning_of_stacked_experts(settings, moe_folder):
    settings |= {"mode": "full", "loss": "sft", "model": moe_folder, "max_steps": 2}
    out = train(TrainConfig(**settings)).out
    before, _ = hub.load(moe_folder, dtype=torch.float32, device="cpu")
    after, _ = hub.load(out, dtype=torch.float32, device="cpu")
    experts = [n for n, p in before.named_parameters() if p.dim() == 3]
    assert experts
    for name in experts:
        assert not torch.equal(before.get_parameter(name), after.get_parameter(name))


def test_an_adapter_on_stacked_experts_is_trained_and_loads(settings, moe_folder):
    settings |= {
        "model": moe_folder, "loss": "entropo-dpo", "learning_rate": 0.05,
        "lora_targets": ["q_proj", "v_proj"], "lora_parameters": ["mlp.experts.down_proj"],
    }  # fmt: skip
    out = train(TrainConfig(**settings)).out
    trained = load_file(out / "adapter_model.safetensors")
    experts = {n: v for n, v in trained.items() if "experts" in n and "lora_B" in n}
    assert len(experts) == 2  # one of each layer
    assert all(value.abs().max() > 0 for value in experts.values())
    base, _ = hub.load(moe_folder, dtype=torch.float32, device="cpu")
    adapted = PeftModel.from_pretrained(base, out)
    assert "mlp.experts.down_proj" in adapted.peft_config["default"].target_parameters
    with_experts = score(adapted)
    for name, parameter in adapted.named_parameters():
        if "experts" in name and "lora_B" in name:
            parameter.data.zero_()
    assert abs(with_experts - score(adapted)) > 1e-3


def test_experts_that_are_not_there(settings):
    settings |= {"lora_targets": [], "lora_parameters": ["mlp.experts.down_proj"]}
    with pytest.raises(ConfigError, match=r"No adapter with targets .*experts.down_proj"):
        train(TrainConfig(**settings))


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_packed_weights_have_the_fingerprint_of_those_on_disk(tmp_path, monkeypatch, shard):
    """Without loading the model once more, which only QLoRA on a GPU would do."""
    tiny_llama().save_pretrained(tmp_path, max_shard_size=shard)
    byte_tokenizer().save_pretrained(tmp_path)
    model, _ = hub.load(tmp_path, dtype="bfloat16", device="cpu")
    expected = base_fingerprint(model)
    for parameter in model.parameters():
        parameter.data = torch.zeros(1)
    monkeypatch.delattr(hub, "load")
    assert saved_fingerprint(str(tmp_path), model) == expected
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")


def test_stacked_experts_have_the_fingerprint_of_the_loaded_model(moe_folder):
    """On disk each expert is by itself, under other names."""
    model, _ = hub.load(moe_folder, dtype="float32", device="cpu")
    assert saved_fingerprint(moe_folder, model) == base_fingerprint(model)


def test_what_a_mode_needs(settings, tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="QLoRA needs a CUDA GPU: use mode 'lora'"):
            train(TrainConfig(**settings, mode="qlora"))
    with pytest.raises(ConfigError, match="merge the adapter into the model first"):
        train(TrainConfig(**settings, mode="full", init_adapter=str(tmp_path)))
    with pytest.raises(ConfigError, match="'mode': Input should be 'lora', 'full' or 'qlora'"):
        TrainConfig.load(**settings, mode="half")
    assert not (tmp_path / "out").exists()
