import pytest
import torch

from learners.ops import check_logits, sequence_logps
from swe_env.errors import ConfigError
from tests.learners.models import tiny_llama


def batch(lengths=(17, 9, 12), vocab=300, seed=3):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(vocab, (length,), generator=generator)
        mask = torch.rand(length, generator=generator) < 0.5
        mask[0] = False
        rows.append((ids, mask))
    return rows


def padded(rows):
    ids = torch.nn.utils.rnn.pad_sequence([r[0] for r in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([r[1] for r in rows], batch_first=True)
    attention = torch.nn.utils.rnn.pad_sequence(
        [torch.ones_like(r[1]) for r in rows], batch_first=True
    )
    return ids, mask, attention


def reference(model, ids, mask):
    logp = model(ids[None]).logits[0].float().log_softmax(-1)
    picked = logp[:-1].gather(1, ids[1:, None]).squeeze(1)
    return (picked * mask[1:]).sum()


def test_parity_with_the_models_own_logits():
    model = tiny_llama()
    for ids, mask in batch():
        out = sequence_logps(model, ids[None], mask[None])
        torch.testing.assert_close(
            out.logps[0].float(), reference(model, ids, mask), atol=1e-4, rtol=1e-5
        )
        assert out.num_tokens.item() == mask.sum()


def test_padding_changes_nothing():
    model, rows = tiny_llama(), batch()
    ids, mask, attention = padded(rows)
    together = sequence_logps(model, ids, mask, attention_mask=attention)
    alone = [sequence_logps(model, i[None], m[None]) for i, m in rows]
    torch.testing.assert_close(
        together.logps, torch.cat([a.logps for a in alone]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        together.entropies, torch.cat([a.entropies for a in alone]), atol=1e-5, rtol=1e-5
    )


def test_nothing_to_learn_gives_a_differentiable_zero():
    model = tiny_llama()
    ids = torch.randint(300, (1, 8))
    out = sequence_logps(model, ids, torch.zeros_like(ids, dtype=torch.bool))
    out.logps.sum().backward()
    assert out.logps.tolist() == [0.0]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_gradient_is_exactly_zero_where_the_policy_did_not_sample():
    """Trap: perturb the logit of every token; only those that predict loss tokens may matter."""
    model = tiny_llama()
    (ids, mask), *_ = batch()
    kept = []
    handle = model.model.norm.register_forward_hook(
        lambda module, arguments, output: kept.append(output) or output.retain_grad()
    )
    sequence_logps(model, ids[None], mask[None]).logps.sum().backward()
    handle.remove()
    gradient = kept[0].grad[0].abs().sum(-1)
    predicts = torch.cat([mask[1:], torch.tensor([False])])
    assert torch.equal(gradient > 0, predicts)


def families():
    from transformers import (
        CohereConfig,
        Gemma2Config,
        GPT2Config,
        GraniteConfig,
        Qwen2Config,
        Qwen3Config,
    )  # fmt: skip

    common = {
        "vocab_size": 120, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
    }  # fmt: skip
    return {
        "gemma2": Gemma2Config(**common, final_logit_softcapping=2.0),
        "cohere": CohereConfig(**common, logit_scale=0.25),
        "granite": GraniteConfig(**common, logits_scaling=3.0),
        "qwen2": Qwen2Config(**common),
        "qwen3": Qwen3Config(**common, tie_word_embeddings=False),
        "gpt2": GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    }


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "qwen2", "qwen3", "gpt2"])
def test_families_scale_and_cap_as_their_own_forward_does(family):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(families()[family]).eval()
    ids, mask = batch(vocab=120)[0]
    out = sequence_logps(model, ids[None], mask[None])
    torch.testing.assert_close(
        out.logps[0].float(), reference(model, ids, mask), atol=1e-4, rtol=1e-4
    )
    check_logits(model, ids)


def test_a_family_that_changes_its_logits_unseen_is_refused():
    model = tiny_llama()
    inner = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 3 * inner(hidden)
    with pytest.raises(ConfigError, match="LlamaForCausalLM does something to its logits"):
        check_logits(model, torch.arange(9))


def test_an_adapter_stays_in_effect():
    from peft import LoraConfig, get_peft_model

    model = tiny_llama()
    ids, mask = batch()[0]
    before = sequence_logps(model, ids[None], mask[None]).logps
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    wrapped = get_peft_model(model, config).eval()
    after = sequence_logps(wrapped, ids[None], mask[None]).logps
    torch.testing.assert_close(
        after[0].float(), reference(wrapped, ids, mask), atol=1e-4, rtol=1e-5
    )
    assert abs(after - before).item() > 1e-3
    with wrapped.disable_adapter():
        assert torch.equal(sequence_logps(wrapped, ids[None], mask[None]).logps, before)


def test_wrong_masks_are_one_sentence():
    model = tiny_llama()
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ConfigError, match="loss_mask is torch"):
        sequence_logps(model, ids, ids)
    with pytest.raises(ConfigError, match="stands first"):
        sequence_logps(model, ids, torch.ones(1, 4, dtype=torch.bool))
