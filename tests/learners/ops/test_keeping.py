import contextlib
import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from learners.ops import keeping, pack
from learners.ops.context import Context, part_of
from learners.ops.keeping import Kept, attention_bytes, checkpoint_settings, needed_bytes, weigh
from tests.learners.models import tiny

CALLS = []


@torch.library.custom_op("swe_tests::squared", mutates_args=())
def squared(x: torch.Tensor) -> torch.Tensor:
    """Stands for attention, and counts."""
    CALLS.append("squared")
    return x * x


squared.register_autograd(
    lambda ctx, grad: 2 * ctx.saved_tensors[0] * grad,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


@pytest.mark.parametrize("keeps", [False, True])
def test_attention_is_computed_once_if_it_is_kept(keeps, monkeypatch):
    monkeypatch.setattr("learners.ops.keeping._ATTENTION", {"swe_tests.squared"})
    kept = Kept(whole=False)
    kept.attention = keeps
    x = torch.randn(30, requires_grad=True)

    def layer(x):
        CALLS.append("layer")
        return squared(x.exp()).tanh()

    (wanted,) = torch.autograd.grad(layer(x).sum(), x)
    CALLS.clear()
    out = checkpoint(layer, x, use_reentrant=False, context_fn=kept)
    (found,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(found, wanted)
    assert CALLS.count("layer") == 2
    assert CALLS.count("squared") == (1 if keeps else 2)


ROOM = 1 << 50


def prepared(model, *, whole=True):
    """A model in training whose layers can be checkpointed, and what it keeps."""
    model.train()
    settings = checkpoint_settings(model, whole=whole)
    model.gradient_checkpointing_enable(settings)
    return model, settings["context_fn"]


def row(size=40):
    return pack([(list(range(3, size + 3)), [False] + [True] * (size - 1))], torch.device("cpu"))


def scored(model, size=40):
    """Gradients of one pass as the learner makes it."""
    packed = row(size)
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    weigh(model, packed.input_ids, packed.layout)
    model(input_ids=packed.input_ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.fixture
def room(monkeypatch):
    """Says how many bytes are free."""

    def free(size):
        monkeypatch.setattr(keeping, "_free", lambda _: size)

    return free


def test_a_cpu_keeps_nothing():
    model, kept = prepared(tiny("llama"))
    assert checkpoint_settings(model)["context_fn"] is kept
    kept.attention, kept.layers = True, 2
    weigh(model, row().input_ids, row().layout)
    assert not kept.attention
    assert not kept.layers
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    assert all(isinstance(context, contextlib.nullcontext) for context in kept())


def test_layers_that_have_room_are_computed_once(room):
    """One in the first pass, which tells what a layer keeps; then as many as fit."""
    model, kept = prepared(tiny("llama", num_hidden_layers=4))
    calls = []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    room(0)
    wanted = scored(model)
    assert sorted(calls) == [0, 0, 1, 1, 2, 2, 3, 3]
    seen = []
    for free in (ROOM, ROOM, 0):
        room(free)
        calls.clear()
        found = scored(model)
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        seen.append([calls.count(number) for number in range(4)])
    assert seen == [[2, 2, 2, 1], [1, 1, 1, 1], [2, 2, 2, 2]]
    config, (tokens, size) = model.config, kept.measured
    assert tokens == 40
    owed = sum(4 * p.numel() for p in model.parameters())
    spare = owed + needed_bytes(config, 40) + keeping._SPARE
    room(spare + int(2.5 * size / keeping.SHARE))
    scored(model)
    assert kept.layers == 2
    room(spare + int(2.5 * size / keeping.SHARE) - 2 * needed_bytes(config, 40))
    scored(model, 80)  # twice as long a pass is given twice as much, beside what it needs itself
    assert kept.layers == 0
    room(spare + int(2.5 * size / keeping.SHARE))
    scored(model, 20)
    assert kept.layers == 4


def test_what_autocast_makes_of_a_layers_weights_is_counted(room):
    """Once more on top of what was measured, in which a short pass has a larger part."""
    model, kept = prepared(tiny("llama", num_hidden_layers=4))
    room(ROOM)
    scored(model)
    config, size = model.config, kept.measured[1]
    weights = sum(2 * p.numel() for p in model.model.layers[-1].parameters())
    owed = sum(4 * p.numel() for p in model.parameters())
    needed = owed + needed_bytes(config, 40) + keeping._SPARE
    room(needed + int((2 * size + weights) / keeping.SHARE))
    model.zero_grad()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            weigh(model, row().input_ids, row().layout)
        found.append(kept.layers)
    assert found == [2, 1]


def test_what_a_layer_keeps_is_what_the_plan_says(room):
    """To the byte, beside its input and the rotation's factors, which are kept in any case."""
    from learners.training.plan.trace import layer_costs, register_attention

    model, kept = prepared(tiny("llama", num_key_value_heads=4))
    room(ROOM)
    scored(model, 64)
    register_attention()
    meta = copy.deepcopy(model).to("meta")
    meta.gradient_checkpointing_disable()
    meta.set_attn_implementation("swe_plan")
    planned = layer_costs(meta)[-1].kept(64)
    states, factors = 4 * 64 * 32, 2 * 4 * 64 * 8
    assert kept.measured == (64, planned + states + factors)


def test_a_layer_that_fails_leaves_nothing_behind(room):
    model, kept = prepared(tiny("llama"))
    room(ROOM)
    layer = model.model.layers[-1]
    mlp, layer.mlp = layer.mlp, torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        scored(model)
    layer.mlp = mlp
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    measured = kept.measured
    torch.ones(3, requires_grad=True).exp().sum().backward()
    assert kept.measured == measured


@pytest.mark.parametrize("reason", ["asked for all", "deepspeed", "rotary", "no gradients"])
def test_no_layer_is_kept_whole(room, reason, monkeypatch):
    model = tiny("llama")
    if reason == "deepspeed":
        next(model.parameters()).ds_id = 0
    if reason == "rotary":
        monkeypatch.setattr(keeping, "moving_rotary", lambda _: "dynamic")
    model, kept = prepared(model, whole=reason != "asked for all")
    room(ROOM)
    with torch.set_grad_enabled(reason != "no gradients"):
        weigh(model, row().input_ids, row().layout)
    assert kept.layers == 0
    assert all(layer.gradient_checkpointing for layer in model.model.layers)


def test_nothing_is_kept_of_a_row_that_processes_share(monkeypatch, room):
    """Were all of it worth keeping and to fit."""
    monkeypatch.setattr(keeping, "_WORTH", 0.0)
    room(ROOM)
    keeps = []
    for packed in (row(), part_of(row(), Context(2, 0))):
        model, kept = prepared(tiny("llama"), whole=False)
        weigh(model, packed.input_ids, packed.layout)
        keeps.append(kept.attention)
    assert keeps == [True, False]


def test_attention_is_not_kept_where_every_layer_is(monkeypatch, room):
    monkeypatch.setattr(keeping, "_WORTH", 0.0)
    room(ROOM)
    model, kept = prepared(tiny("llama"))
    found = []
    for _ in range(2):
        scored(model)
        found.append((kept.attention, kept.layers))
    assert found == [(True, 1), (False, 2)]


def test_paths_that_are_copied_are_counted(room):
    """Queries, keys and values of a branch's path, which is no one range."""
    start = list(range(3, 40))
    sequences = [([*start, at, at + 1, at + 2], [False] + [True] * 39) for at in (50, 60, 70)]
    shared = pack(sequences, torch.device("cpu"), min_share=0.1)
    assert keeping._copies(tiny("llama").config, row().layout) == 0
    paths = 40 + 40 + 40
    assert keeping._copies(tiny("llama").config, shared.layout) == 2 * 3 * 32 * paths


def test_what_keeping_needs():
    """Qwen3-8B, a pair of 2 x 32k: inputs and attention of 36 layers, and a layer's own."""
    from transformers import Qwen3Config

    config = Qwen3Config(
        hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    )  # fmt: skip
    states = 36 * 65_536 * 2 * 4096
    assert states < needed_bytes(config, 65_536) < states + 30 * 2**30
    assert attention_bytes(config, 65_536) == states + 36 * 65_536 * 32 * 4
