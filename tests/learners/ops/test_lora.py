import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from learners.ops import fused, lora
from learners.ops.lora import lean_lora, lora_linear
from tests.learners.models import tiny, tiny_llama


def adapted(dtype=torch.float32, family="llama", shape=None, **changes):
    """A tiny model with an adapter that does something."""
    base = tiny(family, **(shape or {})).to(dtype).requires_grad_(False)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**{**settings, **changes}))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            parameter.data = torch.randn_like(parameter, dtype=wide) * 0.1
    return model


def outcome(model, ids):
    """Hidden states, and the gradient of each trained parameter."""
    model.zero_grad()
    hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    (hidden.double() ** 2).mean().backward()
    return hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


IDS = torch.randint(0, 300, (2, 640), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_results_and_gradients_are_pefts(family):
    model = adapted(torch.float64, family)
    lean = copy.deepcopy(model)
    assert lean_lora(lean) == 14
    (hidden, gradients), (same, others) = outcome(model, IDS), outcome(lean, IDS)
    torch.testing.assert_close(same, hidden, rtol=1e-6, atol=1e-7)  # norms are float32 inside
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-9)


def test_biases_that_are_trained_get_their_gradients():
    base = tiny_llama(attention_bias=True).to(torch.float64).requires_grad_(False)
    settings = {"r": 4, "bias": "all", "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**settings))
    lean = copy.deepcopy(model)
    lean_lora(lean)
    (_, gradients), (_, others) = outcome(model, IDS), outcome(lean, IDS)
    biases = [name for name in gradients if name.endswith("bias")]
    assert len(biases) == 8
    for name in biases:
        torch.testing.assert_close(others[name], gradients[name], rtol=1e-5, atol=1e-9)


def test_in_half_precision_it_is_no_further_from_the_truth_than_peft():
    model = adapted(torch.bfloat16)
    lean, truth = copy.deepcopy(model), copy.deepcopy(model).to(torch.float32)
    lean_lora(lean)
    exact, gradients = outcome(truth, IDS)
    apart = {}
    for name, one in (("peft", model), ("lean", lean)):
        hidden, found = outcome(one, IDS)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        errors = [(found[k] - g).norm() / g.norm() for k, g in gradients.items()]
        apart[name] = (hidden - exact).norm() / exact.norm(), sum(errors) / len(errors)
    for lean_error, peft_error in zip(apart["lean"], apart["peft"], strict=True):
        assert lean_error < 1.1 * peft_error


@pytest.mark.parametrize("rows", [0, 1, 511, 512, 513, 1300])
def test_any_number_of_rows(rows):
    draw = torch.Generator().manual_seed(0)
    x, weight, a, b = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((rows, 6), (5, 6), (2, 6), (5, 2))
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()
    bias = torch.ones(5, dtype=torch.float64)
    found = lora_linear(x, weight, bias, a, b, 0.5)
    wanted = x @ weight.T + bias + 0.5 * (x @ a.T) @ b.T
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad(found.sin().sum(), (x, a, b))
    for mine, theirs in zip(ours, torch.autograd.grad(wanted.sin().sum(), (x, a, b)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_low_rank_part_keeps_float32s_precision_in_half_precision():
    """Beside a zero weight the sum is the low-rank part, rounded once."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(700, 64, generator=draw).bfloat16()
    a, b = torch.randn(8, 64, generator=draw), torch.randn(48, 8, generator=draw)
    found = lora_linear(x, torch.zeros(48, 64, dtype=torch.bfloat16), None, a, b, 2.0)
    exact = 2 * (x.double() @ a.T.double()) @ b.T.double()
    # Half a unit in the last of bfloat16's 8 digits, and what 2^-16 of the factors makes of it.
    allowed = exact.abs() * 2**-8 + 1e-3 * exact.abs().mean()
    assert bool(((found.double() - exact).abs() <= allowed).all())
    assert float((found.double() - exact).abs().mean() / exact.abs().mean()) < 2**-9


def test_it_keeps_each_input_once_and_in_its_own_type():
    kept = {}
    for name in ("peft", "lean"):
        model = adapted(torch.bfloat16)
        if name == "lean":
            lean_lora(model)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.setdefault(t.data_ptr(), t.numel() * t.itemsize) and t,
            lambda t: t,
        ):
            model.get_base_model().model(input_ids=IDS, use_cache=False)
        kept[name] = sum(sizes.values())
    assert kept["lean"] < 0.75 * kept["peft"]


def test_what_is_not_plain_stays_pefts():
    assert lean_lora(adapted(lora_dropout=0.1)) == 0
    assert lean_lora(adapted(use_dora=True)) == 0
    assert lean_lora(tiny_llama()) == 0
    model = adapted()
    plain, _ = outcome(model, IDS)
    lean_lora(model)
    with model.disable_adapter(), torch.no_grad():
        off = model.get_base_model().model(input_ids=IDS, use_cache=False).last_hidden_state
    bare = tiny_llama().model(input_ids=IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(off, bare)
    assert float((plain - off).abs().max()) > 0.01
    merged = model.merge_and_unload()
    whole = merged.model(input_ids=IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)


@pytest.fixture
def split(monkeypatch):
    """The way taken on CUDA, its kernels written out; counts how often a factor is split."""
    made = []

    def stacked(wide, factor):
        high = (wide * factor).bfloat16()
        made.append(high)
        return torch.cat([high, (wide * factor - high).bfloat16(), high])

    def joined(parts):
        total = parts[:, : parts.shape[1] // 2] + parts[:, parts.shape[1] // 2 :]
        high = total.bfloat16()
        return torch.cat([high, high, (total - high).bfloat16()], 1)

    monkeypatch.setattr(lora, "_halves_do", lambda rows, _: rows.dtype == torch.bfloat16)
    monkeypatch.setattr(lora, "_wide_product", lambda left, right: left.float() @ right.float())
    monkeypatch.setattr(fused, "stacked_halves", stacked)
    monkeypatch.setattr(fused, "joined_halves", joined)
    return made


def test_halves_give_what_rows_in_float32_give(split):
    torch.manual_seed(0)
    x, weight = torch.randn(300, 64).bfloat16(), torch.randn(96, 64).bfloat16() / 8
    a, b = torch.randn(4, 64) / 8, torch.randn(96, 4) / 2
    results = []
    for kind in (torch.bfloat16, torch.float64):
        wide = torch.float32 if kind == torch.bfloat16 else kind
        leaves = [x.to(kind), a.to(wide), b.to(wide)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = lora_linear(leaves[0], weight.to(kind), None, *leaves[1:], 2.0)
        results.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    assert len(split) == 2  # of A and of B, for both directions
    for found, wanted in zip(*results, strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 4e-3  # one rounding to bfloat16


def test_an_adapter_is_split_once_between_two_of_its_changes(split):
    model = adapted(torch.bfloat16)
    layers = lean_lora(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    _, alone = outcome(model, IDS)
    assert len(split) == 4 * layers  # forward, and again for the backward pass
    alone = {name: gradient.clone() for name, gradient in alone.items()}
    split.clear()
    with lora.unchanging(model):
        for _ in range(3):
            _, gradients = outcome(model, IDS)
            for name, gradient in gradients.items():
                assert torch.equal(gradient, alone[name])
    assert len(split) == 2 * layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.mul_(0.5 if "lora_A" in name else 4.0)
    with lora.unchanging(model):
        changed, _ = outcome(model, IDS)
    fresh, _ = outcome(model, IDS)
    assert torch.equal(changed, fresh)
    other = copy.deepcopy(model)
    with lora.unchanging(model):
        split.clear()
        outcome(other, IDS)
        outcome(other, IDS)
    assert len(split) == 8 * layers  # a copy is another model, whose changes nobody promised
