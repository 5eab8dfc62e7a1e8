"""What a layer keeps: by hand for one family, and against real tensors for all."""

import weakref

import pytest
import torch
from torch import nn

from learners.training.config import TrainConfig
from learners.training.plan.counts import adapted, decoder_layers, meta_model
from learners.training.plan.trace import LiveBytes, _calls, layer_costs, logps_bytes


def tiny(kind, **changes):
    """A small configuration of each family a plan knows."""
    from transformers import AutoConfig

    shared = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    moe = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
    extra = {
        "qwen3_moe": {**moe, "num_experts": 4},
        "glm4_moe": {**moe, "n_routed_experts": 4, "n_shared_experts": 1, "attention_bias": True},
    }
    return AutoConfig.for_model(kind, **{**shared, **extra.get(kind, {}), **changes})


def costs(config, method="lora", **changes):
    settings = TrainConfig(model="", buffer="", out="", **changes)
    return layer_costs(adapted(meta_model(config), settings, method))


def test_a_qwen3_layer_keeps_what_counting_by_hand_gives():
    h, i, q, kv, heads, r = 64, 96, 64, 32, 4, 8
    float32, bf16 = 4, 2
    norms = bf16 * (h + q + kv) + float32 * (2 + heads + 2)  # inputs but the layer's, and scales
    attention = bf16 * (2 * q + 2 * kv) + float32 * heads  # q, k, v, out; log-sum-exp
    gate = bf16 * 2 * i  # gate, up
    # Inputs once each (that of the output projection is attention's), and what A gives.
    adapters = bf16 * (h + h + i) + float32 * 7 * r
    layer, _ = costs(tiny("qwen3"))
    assert layer.kept.per_token == norms + attention + gate + adapters
    assert layer.kept.fixed == 0


def test_a_layer_in_4_bits_keeps_its_inputs_in_float32_for_each_projection():
    h, i, q, kv, heads, r = 64, 96, 64, 32, 4, 8
    float32, bf16 = 4, 2
    norms = bf16 * (h + q + kv) + float32 * (2 + heads + 2)
    attention = bf16 * (2 * q + 2 * kv) + float32 * heads
    gate = bf16 * 2 * i
    # q, k, v, gate and up read hidden states; then the output projection and that of the unit.
    adapters = float32 * (5 * h + q + i) + float32 * 7 * r
    layer, _ = costs(tiny("qwen3"), "qlora")
    assert layer.kept.per_token == norms + attention + gate + adapters


def test_four_bit_layers_are_told_from_lean_ones():
    from learners.ops.lora import lean_weights

    settings = TrainConfig(model="", buffer="", out="")
    lean, plain = (adapted(meta_model(tiny("llama")), settings, m) for m in ("lora", "qlora"))
    assert lean_weights(lean) == 2 * 8 * (64 + 64 + 2 * (64 + 32) + 64 + 64 + 3 * (64 + 96))
    assert lean_weights(plain) == 0


def test_as_four_bit_computes_what_peft_does():
    from peft.tuners.lora.layer import Linear

    from learners.training.plan.fourbit import as_four_bit

    settings = TrainConfig(model="", buffer="", out="")
    model = adapted(meta_model(tiny("llama")), settings, "lora").to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    layer = next(m for m in model.modules() if type(m) is Linear)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    expected = Linear.forward(layer, x)
    assert as_four_bit(model) == 14
    assert torch.allclose(layer(x).float(), expected.float(), atol=0.02, rtol=0.02)


def test_attention_is_as_wide_as_what_layers_give_it():
    assert costs(tiny("qwen3"))[0].attention == (4, 4 * 32, 4 * 16, 2 * 32)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_under_autocast_a_layer_keeps_what_it_does_with_real_tensors(kind):
    config = tiny(kind)
    settings = TrainConfig(model="", buffer="", out="")
    meta = adapted(meta_model(config, torch.float32), settings, "full")
    planned = layer_costs(meta, cast=True)
    real = adapted(meta_model(config, torch.float32), settings, "full").to_empty(device="cpu")
    for parameter in real.parameters():
        nn.init.normal_(parameter, std=0.02)
    tokens = 96
    for index, layer in enumerate(decoder_layers(real)):
        states = torch.randn(1, tokens, 64, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            saved = _saved(layer, states, real, index)
        assert saved == planned[index].kept(tokens)
    matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    assert planned[0].kept.fixed == 2 * matrices


@pytest.mark.parametrize("method", ["lora", "full"])
def test_experts_in_float32_keep_twice_what_they_do_in_bfloat16(method):
    """The meta device has grouped products in bfloat16 only; cards have both."""
    settings = TrainConfig(model="", buffer="", out="", lora_targets=["q_proj"])
    kept = {
        dtype: layer_costs(adapted(meta_model(tiny("qwen3_moe"), dtype), settings, method))[0].kept
        for dtype in (torch.bfloat16, torch.float32)
    }
    half, wide = (kept[dtype].per_token for dtype in (torch.bfloat16, torch.float32))
    assert 1.3 * half < wide <= 2 * half


def test_an_adapter_on_two_layers_keeps_less():
    few = costs(tiny("qwen3"), lora_targets=["q_proj", "v_proj"])[0]
    # q and v keep one input between them; the other five need two more, and what A gives
    all_seven = costs(tiny("qwen3"))[0]
    saved = 2 * (64 + 96) + 4 * 5 * 8
    assert all_seven.kept.per_token - few.kept.per_token == saved


def test_experts_with_adapters_are_merged_into_copies_that_are_kept():
    experts, inner, width = 4, 32, 64
    plain, merged = (
        costs(tiny("qwen3_moe"), lora_targets=targets)[0] for targets in (["q_proj"], "all-linear")
    )
    assert plain.kept.fixed < 1000
    stack = experts * 3 * inner * width * 2
    assert stack <= merged.kept.fixed < 1.6 * stack


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "qwen3_moe", "glm4_moe"])
def test_shapes_alone_give_what_real_tensors_give(kind):
    """The same layer on the CPU, with real memory, saves as many bytes."""
    config = tiny(kind)
    settings = TrainConfig(model="", buffer="", out="", lora_targets=["q_proj", "o_proj"])
    planned = layer_costs(adapted(meta_model(config), settings, "lora"))
    real = adapted(meta_model(config), settings, "lora").to_empty(device="cpu").train()
    for parameter in real.parameters():
        nn.init.normal_(parameter, std=0.02)
    tokens = 96
    for index, layer in enumerate(decoder_layers(real)):
        states = torch.randn(1, tokens, 64, dtype=torch.bfloat16, requires_grad=True)
        saved = _saved(layer, states, real, index)
        assert saved == planned[index].kept(tokens)


class _Held:
    """What autograd holds in a saved tensor's place."""

    def __init__(self, tensor):
        self.tensor = tensor


def _saved(layer, states, model, index):
    """Bytes of storages that autograd holds, weights and the layer's arguments left out."""
    given = _calls(model, states.shape[1])[index][1]
    known = {
        t.untyped_storage().data_ptr() for t in [states, *layer.parameters(), *_tensors(given)]
    }
    held = weakref.WeakSet()

    def pack(tensor):
        saved = _Held(tensor)
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        out = layer(states, **given)
    assert out.shape == states.shape
    found = {s.tensor.untyped_storage().data_ptr(): s.tensor.untyped_storage() for s in held}
    return sum(storage.nbytes() for key, storage in found.items() if key not in known)


def _tensors(given):
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]


def test_the_logits_exist_for_one_chunk_whatever_the_length():
    head = torch.empty(151_936, 64, dtype=torch.bfloat16, device="meta")
    short, long = (logps_bytes(head, n, n, None).peak for n in (8_192, 65_536))
    # the chosen hidden states, their gradient, and the gradient of all hidden states
    assert long - short == pytest.approx((65_536 - 8_192) * 3 * 64 * 2, rel=1e-6)
    assert short < 4 << 30
    assert logps_bytes(head, 8_192, 8_192, 30.0).peak > short  # the soft cap keeps one more


def test_live_bytes_are_those_that_are_held():
    with LiveBytes() as live:
        first = torch.empty(100, device="meta")
        view = first[10:]
        second = first + 1
        assert live.now == 800
        del first
        assert live.now == 800  # the view holds it
        del view, second
        assert live.now == 0
        assert live.peak == 800


def test_tracing_leaves_autocast_as_it_was():
    before = torch.autocast
    costs(tiny("llama"))
    assert torch.autocast is before
