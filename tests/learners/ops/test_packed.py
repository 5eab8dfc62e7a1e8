import math
import re

import pytest
import torch

from learners.ops import pack, packed_logps, prepare, sequence_logps
from learners.ops.kernels import KERNELS
from learners.ops.packing import Layout
from learners.ops.prefix import grow
from swe_env.errors import ConfigError
from tests.learners.models import tiny, tiny_llama

CPU = torch.device("cpu")
FAMILIES = ["llama", "qwen3", "gemma3", "mistral", "gemma2"]


def branches(seed=0):
    """A prompt and two turns, branches of branches, one that ends early, a stranger, a twin."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return torch.randint(300, (length,), generator=generator).tolist()

    prompt, first, second = draw(11), draw(6), draw(9)
    sequences = [
        prompt + first + draw(8),
        prompt + first + second + draw(3),
        prompt + first + second + draw(12),
        prompt + first,
        draw(17),
        prompt + draw(20),
    ]
    sequences.append(sequences[2])
    shared = torch.rand(40, generator=generator) < 0.5  # of branches: the same agent turns
    shared[0] = False
    return [(ids, shared[: len(ids)].tolist()) for ids in sequences]


def alone(model, sequences):
    parts = [
        sequence_logps(model, torch.tensor([ids]), torch.tensor([mask])) for ids, mask in sequences
    ]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def gradients(model, sums):
    """Of a loss in which every sequence has a weight of its own, and entropies count."""
    weights = torch.linspace(-1, 2, len(sums[0]), dtype=torch.float64)
    model.zero_grad()
    ((sums[0] * weights).sum() + 0.3 * (sums[1] * weights.flip(0)).sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, sequences, kernel, min_share, tolerance):
    expected = alone(model, sequences)
    wanted = gradients(model, expected)
    found = packed_logps(model, pack(sequences, CPU, min_share=min_share), kernel)
    got = gradients(model, found)
    assert got.keys() == wanted.keys()
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    assert found.num_tokens.tolist() == expected[2].tolist()
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, atol=tolerance * largest, rtol=tolerance)


@pytest.mark.parametrize("kernel", ["segments", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_give_what_each_gives_alone(family, kernel):
    model, sequences = tiny(family), branches()
    assert prepare(model, kernel, CPU) == ""
    assert_same(model, sequences, kernel, 2.0, 1e-5)


@pytest.mark.parametrize("kernel", ["segments", "dense"])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_a_shared_beginning_changes_nothing_in_float64(family, kernel):
    model, sequences = tiny(family).double(), branches(seed=1)
    assert prepare(model, kernel, CPU) == ""
    # Whatever the weights are, most families compute norms in float32.
    assert_same(model, sequences, kernel, 0.0, 1e-11 if family == "gpt2" else 2e-6)


def test_shared_tokens_are_computed_once_and_counted_for_each():
    sequences = branches()
    packed = pack(sequences, CPU, min_share=0.0)
    beginnings = {tuple(ids[:end]) for ids, _ in sequences for end in range(1, len(ids) + 1)}
    assert packed.input_ids.shape == (1, len(beginnings))
    assert packed.shared == sum(len(ids) for ids, _ in sequences) - len(beginnings)
    assert packed.counts.tolist() == [sum(mask) for _, mask in sequences]
    assert len(packed.targets) < packed.counts.sum() == len(packed.entries)
    apart = pack(sequences, CPU)
    assert apart.input_ids.shape == (1, sum(len(ids) for ids, _ in sequences))
    assert apart.shared == 0


@pytest.mark.parametrize("min_share", [0.0, 2.0])
def test_gradient_is_exactly_zero_where_no_sequence_sampled_what_follows(min_share):
    model, sequences = tiny("llama"), branches()
    assert prepare(model, "segments", CPU) == ""
    forest = grow([ids for ids, _ in sequences], min_share=min_share)
    predicting = set()
    for leaf, (_, mask) in zip(forest.leaves, sequences, strict=True):
        runs = [forest.runs[run] for run in forest.path(leaf)]
        places = [place for run in runs for place in range(run.start, run.stop)]
        predicting |= {places[at - 1] for at, sampled in enumerate(mask) if sampled}
    kept = []
    handle = model.model.norm.register_forward_hook(
        lambda module, arguments, output: kept.append(output) or output.retain_grad()
    )
    packed = pack(sequences, CPU, min_share=min_share)
    packed_logps(model, packed, "segments").logps.sum().backward()
    handle.remove()
    moved = kept[0].grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert set(moved) == predicting
    assert 0 < len(moved) < packed.input_ids.shape[1]


def test_equal_ids_with_unequal_masks_share_the_pass_and_not_the_loss():
    model = tiny("llama")
    prepare(model, "segments", CPU)
    ids = branches()[0][0]
    one, other = [at % 2 == 1 for at in range(len(ids))], [at > 5 for at in range(len(ids))]
    sequences = [(ids, one), (ids, other)]
    assert pack(sequences, CPU, min_share=0.0).input_ids.shape[1] == len(ids)
    assert_same(model, sequences, "segments", 0.0, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_attention_sees_the_same(family):
    """Its forward pass only: on a CPU it has no backward."""
    model, sequences = tiny(family), branches()
    assert prepare(model, "flex", CPU) == ""
    with torch.no_grad():
        expected = alone(model, sequences)
        found = packed_logps(model, pack(sequences, CPU, min_share=0.0), "flex")
    torch.testing.assert_close(found.logps, expected[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 7])
def test_varlen_arguments_describe_the_same_attention(window):
    """The kernel itself needs CUDA: its documented meaning, written out, on what it is given."""
    layout = pack(branches(), CPU, min_share=0.0).layout
    query, key, value = torch.randn(3, 1, 2, len(layout.ends), 8, dtype=torch.float64)
    at = layout.varlen()
    done = []
    for run in range(len(at.queries_until) - 1):
        mine = query[:, :, at.queries_until[run] : at.queries_until[run + 1]]
        seen = at.keys[at.keys_until[run] : at.keys_until[run + 1]]
        q = torch.arange(mine.shape[2])[:, None] + len(seen) - mine.shape[2]
        k = torch.arange(len(seen))[None]
        mask = (k <= q) & (q - k <= (10**9 if window is None else window - 1))
        scores = (mine @ key[:, :, seen].transpose(2, 3)) * 8**-0.5
        done.append(scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value[:, :, seen])
    dense = KERNELS["dense"](query, key, value, layout, None, window, None)
    torch.testing.assert_close(torch.cat(done, 2), dense)
    assert pack(branches(), CPU).layout.varlen().keys is None, "nothing shared: no copies"
    assert at.longest_queries == max(at.queries_until.diff())
    assert at.longest_keys == max(at.keys_until.diff())


@pytest.mark.parametrize("window", [None, 3, 700])
def test_long_runs_are_computed_in_blocks(window):
    prompt = list(range(640))
    sequences = [(prompt + [7] * 900, [False, True] * 770), (prompt + [8] * 30, [False] * 670)]
    layout = pack(sequences, CPU, min_share=0.0).layout
    query, key, value = torch.randn(3, 1, 2, len(layout.ends), 8, dtype=torch.float64)
    found, expected = (
        KERNELS[kernel](query, key, value, layout, None, window, None)
        for kernel in ("segments", "dense")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_with_an_adapter_and_gradient_checkpointing(family):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny(family).double(), config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    assert prepare(model, "segments", CPU) == ""
    model.train()
    packed = pack(branches(), CPU, min_share=0.0)
    got = gradients(model, packed_logps(model, packed, "segments"))
    layers = 2
    assert len(packed.layout.calls) == 2 * layers, "each layer was computed again"
    model.eval()
    wanted = gradients(model, alone(model, branches()))
    assert got.keys() == wanted.keys()
    assert all("lora" in name for name in got)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_not_packed_are_computed_as_before(family):
    model = tiny(family)
    ids = torch.randint(300, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    before = model(ids, attention_mask=mask).logits
    assert prepare(model, "segments", CPU) == ""
    assert torch.equal(model(ids, attention_mask=mask).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["segments", "flex"])
def test_a_model_that_waits_to_be_sharded_is_proven_with_the_kernel_where_it_will_be(
    family, kernel
):
    assert prepare(tiny(family), kernel, CPU, later=(CPU, torch.bfloat16)) == ""


def test_a_kernel_that_fails_there_is_refused_and_the_model_stays_as_it_was(monkeypatch):
    model, there = tiny("mistral"), (CPU, torch.bfloat16)
    before = model.config._attn_implementation
    assert prepare(model, "varlen", CPU, later=there)  # has no kernel for a CPU
    dense = KERNELS["dense"]
    monkeypatch.setitem(KERNELS, "flash", lambda *inputs: dense(*inputs[:5], None, inputs[6]))
    assert "on cpu in torch.bfloat16 is" in prepare(model, "flash", CPU, later=there)
    assert model.config._attn_implementation == before


def smollm2_shaped():
    shapes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    model = tiny_llama(49_152, num_key_value_heads=3, initializer_range=0.04, **shapes)
    return model.bfloat16()


def test_a_model_of_smollm2s_shapes_is_packed_in_half_precision():
    assert prepare(smollm2_shaped(), "segments", CPU) == ""


def test_a_model_to_which_positions_are_nothing_is_packed_in_half_precision(monkeypatch):
    """It does what the fault does, to the bit, and there is none."""
    model = smollm2_shaped()
    rotary = model.model.rotary_emb.forward

    def still(*given, **named):
        return tuple(
            torch.full_like(part, at == 0) for at, part in enumerate(rotary(*given, **named))
        )

    monkeypatch.setattr(model.model.rotary_emb, "forward", still)
    assert prepare(model, "segments", CPU) == ""


def run_on(model, monkeypatch):
    forward = model.model.forward

    def ignore(**given):
        return forward(**{**given, "position_ids": None})

    monkeypatch.setattr(model.model, "forward", ignore)


def leak(_, monkeypatch):
    def whole_row(query, key, value, layout, scale, window, softcap):
        layout = Layout(grow([range(query.shape[2])]), CPU)
        return KERNELS["dense"](query, key, value, layout, scale, window, softcap)

    monkeypatch.setitem(KERNELS, "segments", whole_row)


@pytest.mark.parametrize(
    ("fault", "reason"), [(run_on, "positions run on over the whole row"), (leak, "that see those")]
)
def test_in_half_precision_faults_no_larger_than_its_rounding_are_found(fault, reason, monkeypatch):
    model = smollm2_shaped()
    fault(model, monkeypatch)
    assert reason in prepare(model, "segments", CPU)
    monkeypatch.setattr("learners.ops.packed._SEEN", math.inf)
    assert prepare(model, "segments", CPU) == "", "the difference alone does not tell"


def test_models_that_cannot_be_packed_say_why_and_stay_as_they_were():
    for family, changes, reason in [
        ("llama", {"attention_dropout": 0.1}, "drops attention out"),
        ("llama", {"sliding_window": 4}, r"windows of \[None, None\], not \[4, 4\]"),
        ("qwen3", {"layer_types": ["linear_attention"] * 2}, "kind linear_attention"),
    ]:
        model = tiny(family)
        for name, value in changes.items():
            setattr(model.config, name, value)
        before = model.config._attn_implementation
        assert re.search(reason, prepare(model, "segments", CPU))
        assert model.config._attn_implementation == before


@pytest.mark.parametrize("error", [ValueError("no soft cap here"), AssertionError()])
def test_whatever_a_familys_code_refuses_with_is_the_reason(error):
    def refuse(*_):
        raise error

    model = tiny("llama")
    before = model.config._attn_implementation
    model.model.layers[0].register_forward_pre_hook(refuse)
    assert prepare(model, "segments", CPU) == (str(error) or "AssertionError")
    assert model.config._attn_implementation == before


def test_a_model_that_was_sampled_from_in_between_is_packed_as_before():
    """Sampling may set an attention of its own, which would not know of runs."""
    model, packed = tiny("llama"), pack(branches(), CPU, min_share=0.0)
    with pytest.raises(ConfigError, match="LlamaForCausalLM was not prepared"):
        packed_logps(model, packed, "segments")
    prepare(model, "segments", CPU)
    before = packed_logps(model, packed, "segments")
    model.set_attn_implementation("eager")
    assert torch.equal(packed_logps(model, packed, "segments").logps, before.logps)


def test_a_first_loss_token_is_one_sentence():
    with pytest.raises(ConfigError, match="stands first"):
        pack([([1, 2], [True, True])], CPU)
