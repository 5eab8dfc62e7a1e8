"""Tiny random models of several families, with the test's own vocabulary."""

from __future__ import annotations

import torch


def tiny_llama(vocab_size: int = 300, seed: int = 0, **changes):
    """A 2-layer Llama with random weights, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "tie_word_embeddings": True, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def tiny(family: str, seed: int = 0, **changes):
    """A tiny model with random weights of a family: they differ in windows, caps, norms."""
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        Gemma3TextConfig,
        GPT2Config,
        GPT2LMHeadModel,
        MistralConfig,
        Qwen3Config,
    )

    if family == "llama":
        return tiny_llama(seed=seed, **changes)
    if family == "gpt2":  # computes wholly in float64 if its weights are, norms included
        torch.manual_seed(seed)
        still = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        settings = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, **still}
        return GPT2LMHeadModel(GPT2Config(**settings, initializer_range=0.2, **changes)).eval()
    common = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    mixed = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
    kind, more = {
        "qwen3": (Qwen3Config, {}),
        "gemma3": (Gemma3TextConfig, mixed),
        "gemma2": (Gemma2Config, {**mixed, "attn_logit_softcapping": 5.0}),
        "mistral": (MistralConfig, {"sliding_window": 5}),
    }[family]
    torch.manual_seed(seed)
    config = kind(**{**common, **more, **changes})
    how = {"attn_implementation": "eager"} if family == "gemma2" else {}  # see hub._keep_softcap
    return AutoModelForCausalLM.from_config(config, **how).eval()


def byte_tokenizer(merges=()):
    """A byte-level tokenizer of 256 bytes, merges of two of them, and ChatML's special tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from agents.chat import CHATML

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(BPE(vocab=vocab, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHATML,
    )


def save_model(folder, **changes):
    """A tiny model with its tokenizer, as `agents.policies.hub.load` reads one."""
    tiny_llama(**changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)
