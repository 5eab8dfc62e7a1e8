"""Configurations of known models, so that a plan needs neither a hub nor weights.

Only what decides shapes is kept, and every figure was read in a public file that its entry names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One model's shapes and where they were read."""

    hub_id: str
    config: dict[str, Any]
    """As in ``config.json``, ``model_type`` included."""
    source: str


QWEN3_4B = KnownModel(
    "Qwen/Qwen3-4B",
    {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 2560,
        "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
        "attention_bias": False, "max_position_embeddings": 40_960,
    },
    "THUDM/slime, scripts/models/qwen3-4B.sh (as forked in zyzshishui/slime, commit 9aa8d246); "
    "Qwen3-4B-Instruct-2507 differs in the rotary base only (qwen3-4B-Instruct-2507.sh there)",
)  # fmt: skip

QWEN3_CODER_30B_A3B = KnownModel(
    "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    {
        "model_type": "qwen3_moe", "vocab_size": 151_936, "hidden_size": 2048,
        "intermediate_size": 5472, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
        "max_position_embeddings": 262_144,
    },
    "the model's own config.json and model.safetensors.index.json (total_size 61064245248) as "
    "copied in ztxz16/fastllm, Qwen3-Coder-30B-A3B-Instruct/, commit f8f04c33",
)  # fmt: skip

GEMMA_3_27B = KnownModel(
    "google/gemma-3-27b-it",
    {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text", "vocab_size": 262_208, "hidden_size": 5376,
            "intermediate_size": 21_504, "num_hidden_layers": 62, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024,
            "query_pre_attn_scalar": 168, "max_position_embeddings": 131_072,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896,
            "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
            "patch_size": 14, "vision_use_head": False,
        },
    },
    "NVIDIA-NeMo/Megatron-Bridge, tests/unit_tests/models/gemma/test_gemma3_bridge.py (text) and "
    "AI-Hypercomputer/maxtext, src/maxtext/configs/models/gemma3-27b.yml (text and vision); "
    "sarghydesign.ro/gemma-explained-whats-new-in-gemma-3 prints the modules (no pooling head)",
)  # fmt: skip

GLM_4_5_AIR = KnownModel(
    "zai-org/GLM-4.5-Air",
    {
        "model_type": "glm4_moe", "vocab_size": 151_552, "hidden_size": 4096,
        "intermediate_size": 10_944, "moe_intermediate_size": 1408, "num_hidden_layers": 46,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
        "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "first_k_dense_replace": 1, "attention_bias": True, "use_qk_norm": False,
        "tie_word_embeddings": False, "max_position_embeddings": 131_072,
    },
    "NVIDIA-NeMo/Megatron-Bridge, src/megatron/bridge/models/glm/glm45_provider.py "
    "(GLM45AirModelProvider106B); slime, scripts/models/glm4.5-106B-A12B.sh (query, key and value "
    "biases, head size 128). Its multi-token-prediction layer is not loaded by transformers.",
)  # fmt: skip

KNOWN: dict[str, KnownModel] = {
    "qwen3-4b": QWEN3_4B,
    "qwen3-4b-instruct-2507": QWEN3_4B,
    "gemma-3-27b": GEMMA_3_27B,
    "gemma-3-27b-it": GEMMA_3_27B,
    "qwen3-coder-30b-a3b": QWEN3_CODER_30B_A3B,
    "qwen3-coder-30b-a3b-instruct": QWEN3_CODER_30B_A3B,
    "glm-4.5-air": GLM_4_5_AIR,
}
"""By the last part of the hub id, in lower case."""


def known_model(name: str) -> KnownModel | None:
    """The entry for a name or hub id, whatever its case; None for a folder or an unknown one."""
    if Path(name).expanduser().is_dir():
        return None
    owner, _, last = name.rpartition("/")
    found = KNOWN.get(last.lower())
    if found is None or owner.lower() not in ("", found.hub_id.partition("/")[0].lower()):
        return None
    return found


def model_config(name: str) -> PretrainedConfig:
    """The configuration of a known model, a folder, ``smollm2``, or a hub id in reach.

    Raises:
        ConfigError: it cannot be had.
    """
    from agents.policies.hub import load_config

    known = known_model(name)
    if known is None:
        return load_config(name)
    from transformers import AutoConfig

    values = dict(known.config)
    config: PretrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
    return config
