import copy

import pytest
import torch
from torch import nn

from learners.ops.lean import gated, lean_layers, rms_norm
from tests.learners.models import tiny

IDS = torch.randint(0, 300, (2, 600), generator=torch.Generator().manual_seed(0))


def outcome(model):
    """Logits, and the gradient of the embedded tokens."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    (logits.double() ** 2).mean().backward()
    return logits.detach(), embedded.grad


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("llama", (5, 2)),
        ("qwen3", (9, 2)),
        ("mistral", (5, 2)),
        ("gemma3", (0, 0)),
        ("gpt2", (0, 0)),
    ],
)
def test_what_is_taken_over_computes_the_same(family, found):
    """To the last bit forward; Gemma's norms and unit are others and stay."""
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        model = tiny(family).to(dtype).requires_grad_(False)
        lean = copy.deepcopy(model)
        assert lean_layers(lean) == found
        (logits, gradient), (same, other) = outcome(model), outcome(lean)
        assert torch.equal(same, logits)
        assert float((other - gradient).norm() / gradient.norm()) < allowed


def test_half_precision_gradients_are_no_further_from_the_truth():
    model = tiny("llama").to(torch.bfloat16).requires_grad_(False)
    lean, wide = copy.deepcopy(model), copy.deepcopy(model).float()
    lean_layers(lean)
    exact = outcome(wide)[1]
    apart = [float((outcome(one)[1] - exact).norm()) for one in (lean, model)]
    assert apart[0] < 1.1 * apart[1]


@pytest.mark.parametrize("rows", [0, 1, 513, 1200])
def test_gradients_of_norm_and_unit(rows):
    draw = torch.Generator().manual_seed(0)
    x, other = (torch.randn(rows, 8, generator=draw).requires_grad_() for _ in range(2))
    weight = torch.rand(8, generator=draw) + 0.5
    wide = x.double().detach().requires_grad_()
    norm = weight.double() * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    (wanted,) = torch.autograd.grad(norm.sin().sum(), wide)
    (found,) = torch.autograd.grad(rms_norm(x, weight, 1e-5).sin().sum(), x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    plain = torch.autograd.grad((nn.functional.silu(x) * other).sin().sum(), (x, other))
    ours = torch.autograd.grad(gated(x, other).sin().sum(), (x, other))
    for one, two in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, two)


def test_it_keeps_much_less():
    kept = {}
    for name in ("own", "lean"):
        model = tiny("llama").to(torch.bfloat16).requires_grad_(False)
        if name == "lean":
            lean_layers(model)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.setdefault(t.data_ptr(), t.numel() * t.itemsize) and t,
            lambda t: t,
        ):
            embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
            model.model(inputs_embeds=embedded, use_cache=False)
        kept[name] = sum(sizes.values())
    assert kept["lean"] < 0.7 * kept["own"]


def test_a_norm_that_is_trained_stays_as_it_was():
    model = tiny("llama")
    lean_layers(model)
    outcome(model)
    weights = [m.weight for n, m in model.named_modules() if n.endswith("norm")]
    assert len(weights) == 5
    assert all(weight.grad is not None for weight in weights)


def test_a_model_without_memory_is_taken_over_just_the_same():
    """So that a plan counts what a run keeps; asked for first, before any class is known."""
    from learners.ops import lean

    lean._is_norm.cache_clear()
    lean._is_unit.cache_clear()
    with torch.device("meta"):
        assert lean_layers(type(tiny("qwen3"))(tiny("qwen3").config)) == (9, 2)
