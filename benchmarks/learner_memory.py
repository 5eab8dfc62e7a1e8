"""Memory of the log-probability pass beyond hidden states and their gradient, by number of tokens.

    python benchmarks/learner_memory.py

A Llama of 2 layers with a vocabulary of 128k and random weights gives the hidden states;
`token_logps` then scores every position and goes back to the hidden states. Each length has a
process of its own; the growth of its peak resident memory over that pass, less the gradient of the
hidden states, stands beside the length. The exit code is 1 where the longest takes a tenth more
than the shortest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from learner_meter import resident
from transformers import AutoModelForCausalLM, LlamaConfig

from learners.ops import token_logps
from swe_env.machine import machine

MIB = 1 << 20
VOCABULARY = 131_072
SHAPES = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=131_072,
    tie_word_embeddings=True,
)  # fmt: skip
TOLERANCE = 1.1
FULL_BYTES = 10
"""Bytes a logit, as DPO code usually builds them: bfloat16, and float32 twice."""


def measure(tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """One pass over `tokens` positions."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES, dtype=dtype)
    ids = torch.randint(0, VOCABULARY, (1, tokens + 1))
    with torch.no_grad():
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[0]
    weight = model.lm_head.weight.detach()
    few = hidden[:4].clone().requires_grad_()
    token_logps(few, weight, ids[0, 1:5])[0].sum().backward()  # what the first call alone takes
    hidden.requires_grad_()
    started = time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    token_logps(hidden, weight, ids[0, 1:])[0].sum().backward()
    took = resident("VmHWM") - before
    assert hidden.grad is not None
    gradient = hidden.grad.numel() * hidden.grad.element_size()
    return {
        "tokens": tokens, "beyond_mib": round((took - gradient) / MIB, 1),
        "hidden_and_gradient_mib": round(2 * gradient / MIB, 1),
        "full_logits_mib": round(tokens * VOCABULARY * FULL_BYTES / MIB),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def main() -> int:
    """Every length, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "learner_memory.json"
    )
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, getattr(torch, given.dtype))))
        return 0
    rows = []
    for tokens in given.tokens:
        # Every tensor from pages of its own, so that what is freed leaves the process.
        apart = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, __file__, "--dtype", given.dtype, "--one", str(tokens)]
        done = subprocess.run(command, check=True, env=apart, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    flat = rows[-1]["beyond_mib"] <= TOLERANCE * rows[0]["beyond_mib"]
    result = {
        "machine": machine("torch", "transformers"),
        "command": "python benchmarks/learner_memory.py",
        "vocabulary": VOCABULARY, "layers": 2, "dtype": given.dtype, "rows": rows, "flat": flat,
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
