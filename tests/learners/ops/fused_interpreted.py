"""Run by `test_fused.py` with Triton's interpreter: the kernels on a CPU against plain PyTorch."""

import json
import sys

import torch

from learners.ops import fused
from learners.ops.logps import _grad_logits
from learners.ops.rotary import _plainly
from tests.learners.ops.plain import plain_gated, plain_norm

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def apart(found, wanted):
    """Largest difference, as a share of the largest value."""
    scale = wanted.double().abs().max().clamp_min(1e-9)
    return float((found.double() - wanted.double()).abs().max() / scale)


def with_gradients(function, *inputs):
    """What a function gives and the gradients of a fixed sum of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    return out.detach(), weights, torch.autograd.grad(out, leaves, weights)


def norms(dtype):
    """A few long rows and many short ones, neither a power of two."""
    for shape in ((5, 300), (701, 24)):
        x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
        out, grad, (wanted,) = with_gradients(lambda rows, w=weight: plain_norm(rows, w), x)
        found, factors = fused.rms_norm(x, weight, 1e-6)
        yield "norm", apart(found, out)
        back = fused.rms_norm_backward(grad, x, weight, factors)
        yield "norm gradient", apart(back, wanted)


def units(dtype):
    """More elements than a program holds."""
    gate, up = (torch.randn(37, 150).to(dtype) for _ in range(2))
    out, grad, wanted = with_gradients(plain_gated, gate, up)
    yield "unit", apart(fused.gated(gate, up), out)
    for name, found, right in zip(
        ("gate", "up"), fused.gated_backward(grad, gate, up), wanted, strict=True
    ):
        yield f"gradient of {name}", apart(found, right)


def logits(dtype):
    """A vocabulary of more than two blocks, with a sharp and a flat row."""
    rows, words, cap = 6, 9001, 7.0
    raw = torch.randn(rows, words) * torch.tensor([0, 0.1, 1, 3, 10, 0.5])[:, None]
    given = raw.double().requires_grad_()
    capped = cap * torch.tanh(given * 1.5 / cap)
    targets = torch.randint(0, words, (rows,))
    logp = capped.log_softmax(-1)
    entropies = -(logp.exp() * logp).sum(-1)
    found, spread = fused.logit_sums(capped.detach().float())
    yield "log Z", apart(found, capped.logsumexp(-1))
    yield "entropy", apart(spread, entropies)
    to_logps, to_entropies = torch.randn(2, rows)
    said = logp[torch.arange(rows), targets]
    (wanted,) = torch.autograd.grad(
        (said * to_logps + entropies * to_entropies).sum(), given, retain_graph=True
    )
    plain = fused.logit_grads(
        capped.detach().float(), targets, found, to_logps, (spread, to_entropies), dtype,
        softcap=cap, scale=1.5,
    )  # fmt: skip
    yield "gradient", apart(plain, wanted)
    alone = fused.logit_grads(
        raw, targets, raw.logsumexp(-1), to_logps, None, dtype, softcap=None, scale=1.0
    )
    yield (
        "gradient of log-probabilities alone",
        apart(alone, _grad_logits(raw, targets, raw.logsumexp(-1), to_logps, None)),
    )


def halves():
    """A low-rank product of bfloat16 rows with a float32 adapter, in its precision."""
    rows, a, b = torch.randn(1001, 70).bfloat16(), torch.randn(5, 70), torch.randn(90, 5)
    first = fused.stacked_halves(a, 1.0)
    low = fused.joined_halves(rows.float() @ first[:10].float().T)
    found = low.double() @ fused.stacked_halves(b.T, 0.3).double()
    yield "low-rank product", apart(found, 0.3 * (rows.double() @ a.double().T) @ b.double().T)


def rotations(dtype):
    """Heads of a width that is no power of two, cosines of the two halves unlike each other."""
    x = torch.randn(1, 37, 3, 12).to(dtype).transpose(1, 2)
    cos, sin = torch.randn(2, 1, 37, 12).to(dtype)
    out, grad, (wanted,) = with_gradients(lambda x: _plainly(x, cos, sin), x)
    yield "rotation", apart(fused.rotated(x, cos, sin), out)
    yield "rotation's gradient", apart(fused.rotated(grad, cos, sin, back=True), wanted)


if __name__ == "__main__":
    torch.manual_seed(0)
    kind = TYPES[sys.argv[1]]
    print(json.dumps([*norms(kind), *units(kind), *logits(kind), *halves(), *rotations(kind)]))
