import contextlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from learners.ops import pack
from learners.ops.context import Context, part_of
from learners.ops.keeping import KeptAttention, checkpoint_settings, needed_bytes, weigh
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
    kept = KeptAttention()
    kept.keeps = keeps
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


def test_a_cpu_keeps_nothing():
    model = tiny("llama")
    kept = checkpoint_settings(model)["context_fn"]
    assert checkpoint_settings(model)["context_fn"] is kept
    packed = pack([([3, 4, 5], [False, True, True])], torch.device("cpu"))
    kept.keeps = True
    weigh(model, packed.layout)
    assert not kept.keeps
    assert all(isinstance(context, contextlib.nullcontext) for context in kept())


class OnCuda(torch.Tensor):
    """Says that it is on CUDA."""

    device = torch.device("cuda")


def test_nothing_is_kept_of_a_row_that_processes_share(monkeypatch):
    """On CUDA, were all of it worth keeping and to fit."""
    monkeypatch.setattr("learners.ops.keeping._WORTH", 0.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 50, 1 << 50))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    whole = pack([([3, 4, 5, 6], [False, True, True, True])], torch.device("cpu"))
    keeps = []
    for packed in (whole, part_of(whole, Context(2, 0))):
        packed.layout.ends = packed.layout.ends.as_subclass(OnCuda)
        kept = KeptAttention()
        kept.weigh(tiny("llama"), packed.layout)
        keeps.append(kept.keeps)
    assert keeps == [True, False]


def test_what_keeping_needs():
    """Qwen3-8B, a pair of 2 x 32k: inputs and attention of 36 layers, and a layer's own."""
    from transformers import Qwen3Config

    config = Qwen3Config(
        hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    )  # fmt: skip
    layers = 2 * 36 * 65_536 * 2 * 4096
    assert layers < needed_bytes(config, 65_536) < layers + 30 * 2**30
