"""What the learner's GPU code rests on: attention by several kernels, log-probabilities, layers.

    python benchmarks/kernels_gpu.py

Prints JSON lines and writes `benchmarks/results/kernels_gpu_CARD.json`: TFLOP/s of attention
forward and backward (causal; the backward is counted as 2.5 forwards) by each kernel, and what the
first call of a new length costs; the log-probability pass with the Triton kernels and with
PyTorch's operations around the same matrix products; norms, gated units and an adapted linear
layer. Under a minute on an H200; no network.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from learners.ops import fused, token_logps
from learners.ops.lora import lora_linear
from swe_env.machine import machine

HALF = torch.bfloat16
ATTENTION = ((32, 8, 128, 32_768), (32, 8, 128, 8_192), (14, 2, 64, 32_768))
"""Heads, key heads, width, tokens."""
BACKENDS: dict[str, list[SDPBackend]] = {
    "SDPA, flash": [SDPBackend.FLASH_ATTENTION], "SDPA, cuDNN": [SDPBackend.CUDNN_ATTENTION],
}  # fmt: skip


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """Of one call, after one that is not timed."""
    work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / rounds


def once(work: Callable[[], Any]) -> float:
    """Of the very first call."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=HALF)


def attention() -> Iterator[dict[str, Any]]:
    """Every kernel on the same numbers."""
    for heads, key_heads, width, tokens in ATTENTION:
        q = draw(1, tokens, heads, width).transpose(1, 2).requires_grad_()
        k, v = (draw(1, tokens, key_heads, width).transpose(1, 2).requires_grad_() for _ in "kv")
        grad = draw(1, tokens, heads, width).transpose(1, 2)
        work = 2.0 * tokens**2 * heads * width
        for name, attend in (*_backends(q, k, v), ("varlen", _varlen(q, k, v))):
            with torch.no_grad():
                forward = seconds(attend)
            both = seconds(lambda attend=attend, grad=grad: attend().backward(grad))
            yield {
                "attention": name, "heads": heads, "key_heads": key_heads, "width": width,
                "tokens": tokens, "forward_tflops": work / forward / 1e12,
                "backward_tflops": 2.5 * work / (both - forward) / 1e12,
            }  # fmt: skip


def _backends(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    def attend(kernels: list[SDPBackend]) -> Tensor:
        with sdpa_kernel(kernels):
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for name, kernels in BACKENDS.items():
        yield name, lambda kernels=kernels: attend(kernels)


def _varlen(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    from learners.ops.kernels import varlen
    from learners.ops.packing import Layout
    from learners.ops.prefix import grow

    layout = Layout(grow([list(range(q.shape[2]))]), torch.device("cuda"))
    return lambda: varlen(q, k, v, layout, None, None, None)


def new_lengths() -> Iterator[dict[str, Any]]:
    """cuDNN prepares a kernel for every length it has not seen."""
    for tokens in (5000, 5100, 5200):
        q, k = draw(1, 32, tokens, 128).requires_grad_(), draw(1, 8, tokens, 128).requires_grad_()
        [(_, attend)] = [pair for pair in _backends(q, k, k) if "cuDNN" in pair[0]]
        found: list[Tensor] = []
        forward = once(lambda found=found, attend=attend: found.append(attend()))
        back = once(lambda found=found: found[0].sum().backward())
        yield {"new_length": tokens, "forward_s": forward, "backward_s": back}


def logps() -> Iterator[dict[str, Any]]:
    """13,107 agent tokens (a fifth of a pair of 2 x 32k), 151,936 words."""
    usable = fused.usable
    for dim in (896, 4096):
        hidden, head = draw(13_107, dim).requires_grad_(), draw(151_936, dim) * 0.02
        targets = torch.randint(151_936, (13_107,), device="cuda")
        work = 2.0 * hidden.numel() * len(head)

        def score(hidden: Tensor = hidden, head: Tensor = head, to: Tensor = targets) -> Tensor:
            return token_logps(hidden, head, to)[0].sum()

        for name, use in (("Triton", usable), ("PyTorch", lambda _: False)):
            fused.usable = use
            with torch.no_grad():
                forward = seconds(score)
            both = seconds(lambda: score().backward())
            yield {
                "logps": name, "dim": dim, "forward_ms": 1e3 * forward, "both_ms": 1e3 * both,
                "forward_tflops": work / forward / 1e12, "both_tflops": 3 * work / both / 1e12,
            }  # fmt: skip
        fused.usable = usable


def layers() -> Iterator[dict[str, Any]]:
    """65,536 tokens of a width of 4,096."""
    x, weight = draw(65_536, 4096), draw(4096)
    _, factors = fused.rms_norm(x, weight, 1e-6)
    size = 2.0 * x.numel()
    for name, work, moved in (
        ("norm", lambda: fused.rms_norm(x, weight, 1e-6), 2),
        ("norm, backward", lambda: fused.rms_norm_backward(x, x, weight, factors), 3),
        ("norm of rows of 128", lambda: fused.rms_norm(x.view(-1, 128), weight[:128], 1e-6), 2),
        ("gated unit", lambda: fused.gated(x, x), 3),
        ("gated unit, backward", lambda: fused.gated_backward(x, x, x), 5),
    ):
        took = seconds(work)
        yield {"layer": name, "ms": 1e3 * took, "terabytes_per_s": moved * size / took / 1e12}
    wide = draw(12_288, 4096) * 0.02
    a = torch.randn(8, 4096, device="cuda", requires_grad=True)
    b = torch.randn(12_288, 8, device="cuda", requires_grad=True)
    x.requires_grad_()
    with torch.no_grad():
        bare = seconds(lambda: linear(x, wide))
        adapted = seconds(lambda: lora_linear(x, wide, None, a, b, 2.0))
    grad = draw(65_536, 12_288)
    both = seconds(lambda: lora_linear(x, wide, None, a, b, 2.0).backward(grad))
    yield {
        "layer": "linear to 12,288 (bare; with an adapter; forward and backward)",
        "ms": [1e3 * bare, 1e3 * adapted, 1e3 * both],
    }


def main() -> int:
    """Measure everything and write it down."""
    if not torch.cuda.is_available():
        print("There is no CUDA GPU here: run this on a machine with one.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name()
    rows = []
    for part in (attention, new_lengths, logps, layers):
        for row in part():
            rows.append(row)
            print(json.dumps(row), flush=True)
        torch.cuda.empty_cache()
    result = {
        "machine": machine("torch", "triton"), "device": card, "figures": rows,
        "cudnn": torch.backends.cudnn.version(), "command": "python benchmarks/kernels_gpu.py",
    }  # fmt: skip
    name = "_".join("".join(c if c.isalnum() else " " for c in card.lower()).split())
    out = Path(__file__).parent / "results" / f"kernels_gpu_{name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
