import contextlib
import copy
import gc
import types
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from learners.ops import keeping, pack, packed_logps, prepare
from learners.ops.context import Context, part_of
from learners.ops.keeping import Kept, Sizes, checkpoint_settings, give_way, weigh
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
    kept = Kept(selective=False)
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


def prepared(model, *, selective=True):
    """A model in training whose layers can be checkpointed, and what it keeps."""
    model.train()
    settings = checkpoint_settings(model, selective=selective)
    model.gradient_checkpointing_enable(settings)
    return model, settings["context_fn"]


def row(size=40):
    return pack([(list(range(3, size + 3)), [False] + [True] * (size - 1))], torch.device("cpu"))


def scored(model, size=40):
    """Gradients of one pass as the learner makes it."""
    packed = row(size)
    model.zero_grad()
    weigh(model, packed.input_ids, packed.layout)
    model(input_ids=packed.input_ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.fixture
def room(monkeypatch):
    """Says how many bytes are free."""

    def free(size):
        monkeypatch.setattr(keeping, "_free", lambda _: size)

    return free


def test_a_cpu_keeps_no_layer_and_no_short_attention():
    model, kept = prepared(tiny("llama"), selective=False)
    assert checkpoint_settings(model)["context_fn"] is kept
    kept.attention, kept.layers = True, 2
    weigh(model, row().input_ids, row().layout)
    assert not kept.attention
    assert not kept.layers
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    assert all(isinstance(context, contextlib.nullcontext) for context in kept())


class Calls(TorchDispatchMode):
    """Counts the operations that are computed: checkpointing's own mode, inside, hands these on."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names[operation.overloadpacket.__name__] += 1
        return operation(*args, **kwargs or {})


@pytest.mark.parametrize("packed", [True, False])
def test_a_cpu_keeps_long_attention(monkeypatch, packed):
    """Of packed rows and of plain ones; the same bits in half the calls of its kernel."""
    model, kept = prepared(tiny("llama", attn_implementation="sdpa"), selective=False)
    if packed:
        assert prepare(model, "segments", torch.device("cpu")) == ""
    one, found = row(250), []
    for worth in (1e12, 0.0):
        monkeypatch.setattr(keeping, "WORTH_ON_CPU", worth)
        model.zero_grad()
        weigh(model, one.input_ids, one.layout if packed else None)
        assert kept.attention == (worth == 0.0)
        with Calls() as seen:
            if packed:
                packed_logps(model, one, "segments").logps.sum().backward()
            else:
                model(input_ids=one.input_ids, use_cache=False).logits.logsumexp(
                    -1
                ).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        found.append((seen.names["_scaled_dot_product_flash_attention_for_cpu"], gradients))
    again, once = found
    assert (again[0], once[0]) == (4, 2)  # two layers
    assert all(map(torch.equal, again[1], once[1]))


@pytest.mark.parametrize("packed", [True, False])
def test_attention_is_long_from_a_number_of_operations_on(packed, room):
    """Causal attention of n tokens, 32 wide: 2 x 32 n^2 operations."""
    room(ROOM)
    model, kept = prepared(tiny("llama"), selective=False)
    least = round((keeping.WORTH_ON_CPU / 64) ** 0.5)
    for tokens in (least - 1, least + 1):
        one = row(tokens)
        weigh(model, one.input_ids, one.layout if packed else None)
        assert kept.attention == (tokens > least)
    weigh(model, one.input_ids.repeat(2, 1), None)  # padded, perhaps: with a mask of its own
    assert not kept.attention


def test_a_control_groups_limit_is_what_is_left(monkeypatch, tmp_path):
    """Less what it uses, but for files that were read; for each process of the machine its part."""
    free = keeping._available()
    assert free > 0
    (tmp_path / "memory.max").write_text(f"{free // 2}\n")
    (tmp_path / "memory.current").write_text(f"{free // 4}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {free // 8}\n")
    monkeypatch.setattr(keeping, "_GROUP", tmp_path)
    wanted = free // 2 - free // 4 + free // 8
    assert keeping._available() == wanted
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert keeping._available() == wanted // 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    (tmp_path / "memory.max").write_text("max\n")
    assert keeping._available() > free // 2


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
    tokens, size = kept.measured
    assert tokens == 40
    needed = Sizes.of(model.config).needed_bytes(40, 4)
    spare = sum(4 * p.numel() for p in model.parameters()) + needed + keeping._SPARE
    room(spare + int(2.5 * size / keeping.SHARE))
    scored(model)
    assert kept.layers == 2
    room(spare + int(2.5 * size / keeping.SHARE) - 2 * needed)
    scored(model, 80)  # twice as long a pass is given twice as much, beside what it needs itself
    assert kept.layers == 0
    room(spare + int(2.5 * size / keeping.SHARE))
    scored(model, 20)
    assert kept.layers == 4


def test_what_autocast_makes_of_the_weights_is_counted(room):
    """It holds all of them through a pass."""
    model, kept = prepared(tiny("llama", num_hidden_layers=4))
    room(ROOM)
    scored(model)
    size, weights = kept.measured[1], sum(2 * p.numel() for p in model.parameters())
    needed = 2 * weights + Sizes.of(model.config).needed_bytes(40, 4) + keeping._SPARE
    room(needed + weights + int(2.5 * size / keeping.SHARE))
    model.zero_grad()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            weigh(model, row().input_ids, row().layout)
        found.append(kept.layers)
    assert found[0] > found[1] == 2


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gemma2", "mistral", "gpt2"])
def test_every_familys_layers_can_be_kept(room, family):
    """GPT-2's decoder calls its layers something else: there none is."""
    model, kept = prepared(tiny(family))
    room(0)
    wanted = scored(model)
    room(ROOM)
    for _ in range(2):
        found = scored(model)
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    assert kept.layers == (0 if family == "gpt2" else 2)


def test_one_layer_of_each_kind_is_measured(room):
    """Experts in every layer but the first: the largest counts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 16, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 64,
        "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 3, "mlp_only_layers": [2],
    }  # fmt: skip
    model, kept = prepared(Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape)))
    room(ROOM)
    scored(model)
    flags = [layer.gradient_checkpointing for layer in model.model.layers]
    assert flags == [True, False, False]
    largest = kept.measured[1]
    dense = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape | {"mlp_only_layers": [0, 1, 2]}))
    model, kept = prepared(dense)
    scored(model)
    assert kept.measured[1] < largest


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


@pytest.mark.parametrize("number", [0, -1])
def test_a_pass_that_fails_tells_nothing_and_leaves_nothing_behind(room, number):
    """Neither hooks nor, if a later one goes on without keeping, a measurement of that."""
    model, kept = prepared(tiny("llama"))
    room(ROOM)
    layer = model.model.layers[number]
    mlp, layer.mlp = layer.mlp, torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        scored(model)
    layer.mlp = mlp
    room(0)
    scored(model)
    assert kept.measured == (0, 0)
    last = model.model.layers[-1]
    assert not last._forward_hooks
    assert not last._forward_pre_hooks
    room(ROOM)
    scored(model, 20)
    assert kept.measured[0] == 20


def test_what_a_measured_layer_saved_is_freed_with_its_graph(room):
    """Also if no backward pass comes, as after an error."""
    model, _ = prepared(tiny("llama"))
    room(ROOM)
    saved = []
    attend = model.model.layers[-1].self_attn.o_proj
    attend.register_forward_hook(lambda _m, args, _o: saved.append(weakref.ref(args[0])))
    gc.disable()
    try:
        weigh(model, row().input_ids, row().layout)
        out = model(input_ids=row().input_ids, use_cache=False).logits
        del out
        assert saved[0]() is None
    finally:
        gc.enable()


def test_attention_gives_way_after_layers(monkeypatch, room):
    monkeypatch.setattr(keeping, "WORTH_ON_CPU", 0.0)
    room(ROOM)
    model, kept = prepared(tiny("llama", num_hidden_layers=4))
    found = []
    for _ in range(5):
        scored(model)
        found.append((kept.layers, kept.attention, give_way(model) if found else None))
    assert found == [
        (1, True, None), (4, False, True), (2, True, True), (1, True, True), (0, True, True)
    ]  # fmt: skip
    scored(model)
    assert (kept.layers, kept.attention, give_way(model)) == (0, False, False)


def test_a_sharded_model_keeps_no_layer_whole(room, monkeypatch):
    """Its weights stand for parts."""
    model, kept = prepared(tiny("llama"))
    monkeypatch.setattr(keeping, "DTensor", torch.nn.Parameter)
    monkeypatch.setattr(keeping, "_local", lambda parameter: parameter)
    room(ROOM)
    scored(model)
    assert kept.layers == 0


@pytest.mark.parametrize("reason", ["asked for all", "deepspeed", "rotary", "no gradients"])
def test_no_layer_is_kept_whole(room, reason, monkeypatch):
    model = tiny("llama")
    if reason == "deepspeed":
        next(model.parameters()).ds_id = 0
    if reason == "rotary":
        monkeypatch.setattr(keeping, "moving_rotary", lambda _: "dynamic")
    model, kept = prepared(model, selective=reason != "asked for all")
    room(ROOM)
    with torch.set_grad_enabled(reason != "no gradients"):
        weigh(model, row().input_ids, row().layout)
    assert kept.layers == 0
    recomputed = [layer.gradient_checkpointing for layer in model.model.layers]
    assert recomputed == [reason != "no gradients"] * 2


def test_nothing_is_kept_of_a_row_that_processes_share(monkeypatch, room):
    """Were all of it worth keeping and to fit."""
    monkeypatch.setattr(keeping, "WORTH_ON_CPU", 0.0)
    room(ROOM)
    keeps = []
    for packed in (row(), part_of(row(), Context(2, 0))):
        model, kept = prepared(tiny("llama"), selective=False)
        weigh(model, packed.input_ids, packed.layout)
        keeps.append(kept.attention)
    assert keeps == [True, False]


def test_attention_is_not_kept_where_every_layer_is(monkeypatch, room):
    monkeypatch.setattr(keeping, "WORTH_ON_CPU", 0.0)
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
    sizes = Sizes.of(tiny("llama").config)
    assert sizes.copied_bytes(row().layout, 2) == 0
    paths = 40 + 40 + 40
    assert sizes.copied_bytes(shared.layout, 2) == 2 * 3 * 32 * paths


def test_what_keeping_needs():
    """Qwen3-8B, a pair of 2 x 32k: inputs and attention of 36 layers, and a layer's own."""
    from transformers import Qwen3Config

    config = Qwen3Config(
        hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    )  # fmt: skip
    states = 36 * 65_536 * 2 * 4096
    sizes = Sizes.of(config)
    assert states < sizes.needed_bytes(65_536, 2) < states + 30 * 2**30
    assert sizes.attention_bytes(65_536, 2) == states + 36 * 65_536 * 32 * 4


@pytest.mark.parametrize(
    ("names", "inner"),
    [({"n_inner": 50}, 50), ({"ffn_dim": 70}, 70), ({"intermediate_size": None}, 128),
     ({"intermediate_size": [40, 60]}, 60),
     ({"num_experts_per_tok": 4, "moe_intermediate_size": 9, "intermediate_size": 99}, 36),
     ({"top_k_experts": 3, "moe_intermediate_size": 50, "intermediate_size": 99}, 150)],
)  # fmt: skip
def test_sizes_by_whatever_name(names, inner):
    common = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    assert Sizes.of(types.SimpleNamespace(**common, **names)) == Sizes(2, 32, 4, 32, inner)
    assert Sizes.of(types.SimpleNamespace(hidden_size=32)) is None


def test_compressed_attention_is_as_wide_as_its_queries():
    """DeepSeek-V3: 128 + 64, of which `head_dim` names the rotated 64; values are 128."""
    from transformers import DeepseekV3Config

    assert Sizes.of(DeepseekV3Config()).width == 128 * (128 + 64)
