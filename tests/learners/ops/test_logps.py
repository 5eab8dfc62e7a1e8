import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learners.ops import token_logps
from swe_env.errors import ConfigError


def draw(tokens=23, dim=8, vocab=50, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, dim, generator=generator).to(dtype)
    weight = torch.randn(vocab, dim, generator=generator).to(dtype)
    bias = torch.randn(vocab, generator=generator).to(dtype)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    return hidden, weight, bias, targets


def full_logits(hidden, weight, bias, targets, softcap=None, scale=1.0):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = logits.log_softmax(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


SHAPES = [{}, {"softcap": 5.0}, {"scale": 0.3}, {"softcap": 3.0, "scale": 1.7}]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_parity_with_full_logits(shape, biased):
    hidden, weight, bias, targets = draw()
    arguments = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    results = []
    for function, extra in ((token_logps, {"chunk_size": 7}), (full_logits, {})):
        for x in arguments:
            x.grad = None
        h, w, b = arguments
        if function is token_logps:
            logps, entropies = function(h, w, targets, bias=b if biased else None, **extra, **shape)
        else:
            logps, entropies = function(h, w, b if biased else None, targets, **shape)
        (logps.sum() + (0.3 * entropies).sum()).backward()
        results.append([logps, entropies, *(x.grad for x in arguments if x.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck(shape):
    hidden, weight, bias, targets = draw(tokens=5, vocab=11, dim=3, dtype=torch.float64)
    for x in (hidden, weight, bias):
        x.requires_grad_()

    def function(h, w, b):
        return token_logps(h, w, targets, bias=b, chunk_size=2, **shape)

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


def test_entropy_of_a_flat_distribution_is_log_vocab():
    hidden, weight, _, targets = draw(tokens=3)
    _, entropies = token_logps(hidden * 0, weight, targets)
    torch.testing.assert_close(entropies, torch.full((3,), 50.0).log())


def test_half_precision_is_not_rounded_on_the_way():
    """The logits of a bfloat16 head, at 30 and above, would be rounded by up to 0.125."""
    hidden, weight, bias, targets = draw(tokens=40, dim=64, vocab=9000, dtype=torch.bfloat16)
    wide = [x.float() for x in (hidden, weight, bias)]
    logps, entropies = token_logps(hidden, weight, targets, bias=bias)
    assert logps.dtype == entropies.dtype == torch.float32
    expected = full_logits(*wide, targets)
    torch.testing.assert_close(logps, expected[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(entropies, expected[1], atol=1e-4, rtol=1e-5)


def test_autocast_does_not_reach_the_products():
    hidden, weight, _, targets = draw(tokens=10, dim=64)
    plain, _ = token_logps(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = token_logps(hidden, weight, targets)
    assert torch.equal(plain, cast)


def test_no_gradient_is_made_of_a_frozen_head_and_no_tokens_give_none():
    """None that autograd would throw away either: it is as large as the head."""
    made = {}
    for trained in (False, True):
        hidden, weight, _, targets = draw(tokens=4, dim=64, vocab=40_000)
        hidden.requires_grad_()
        weight.requires_grad_(trained)
        logps, _ = token_logps(hidden, weight, targets)
        with PeakBytes() as memory:
            logps.sum().backward()
        assert hidden.grad.abs().sum() > 0
        made[trained] = memory.peak
    size = weight.numel() * weight.element_size()
    assert made[True] - made[False] > 0.9 * size
    hidden, weight = hidden.detach(), weight.detach()
    empty, _ = token_logps(hidden[:0].requires_grad_(), weight, targets[:0])
    empty.sum().backward()
    assert empty.shape == (0,)


class PeakBytes(TorchDispatchMode):
    """Peak bytes of the tensors that operations make while this is active."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage):
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes()
        self.seen[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key):
        self.live -= self.seen.pop(key)


def peak_beyond_hidden(tokens, function, **settings):
    hidden, weight, _, targets = draw(tokens=tokens, dim=4, vocab=2000)
    hidden.requires_grad_()
    with PeakBytes() as memory:
        function(hidden, weight, targets, **settings)[0].sum().backward()
    return memory.peak - 2 * hidden.nbytes


def test_memory_beyond_the_hidden_states_is_flat_in_tokens():
    logits_of_a_chunk = 64 * 2000 * 4
    few = peak_beyond_hidden(256, token_logps, chunk_size=64)
    many = peak_beyond_hidden(4096, token_logps, chunk_size=64)
    assert many - few < 4096 * 64  # the vectors of logps, norms, entropies and their gradients
    assert many < 4 * logits_of_a_chunk
    full = peak_beyond_hidden(4096, lambda h, w, t: full_logits(h, w, None, t))
    assert full > 4096 * 2000 * 4  # the gauge sees what full logits take


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.long)}, r"expected int64 of shape \(23,\)"),
        ({"lm_head_weight": torch.zeros(50, 9)}, r"expected \(tokens, dim\) and \(vocab, dim\)"),
        ({"lm_head_weight": torch.zeros(50, 8).half()}, "cast one to the other"),
        ({"bias": torch.zeros(8)}, r"bias has shape \(8,\): expected \(50,\)"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_wrong_arguments_are_one_sentence(change, message):
    hidden, weight, _, targets = draw()
    arguments = {"hidden": hidden, "lm_head_weight": weight, "targets": targets, **change}
    with pytest.raises(ConfigError, match=message):
        token_logps(**arguments)
