"""The planner's memory of one training step against what the process really takes, on a CPU.

    python benchmarks/plan_memory.py --tokens 1024

A small Llama with random weights and a LoRA adapter takes one step (log-probabilities of one
sequence, backward) in a process of its own, once with and once without gradient checkpointing. The
growth of the process's peak resident memory, which knows nothing of tensors, stands beside what the
plan says is needed beyond weights, adapter, gradients and optimizer. Both in float32, in which
every CPU computes; with as many key heads as query heads, because PyTorch's CPU kernel for fewer
keeps the tokens x tokens matrix that a GPU's does not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from learners.ops import sequence_logps
from learners.training.config import TrainConfig
from learners.training.model import add_adapter, checkpoint
from learners.training.plan.assumptions import Assumptions
from learners.training.plan.costs import Costs, Setup
from learners.training.plan.samples import MicroBatch
from swe_env.machine import machine

MIB = 1 << 20
SHAPES = LlamaConfig(
    vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=12,
    num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=65_536,
    tie_word_embeddings=True,
)  # fmt: skip


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def step(model: torch.nn.Module, tokens: int, loss_tokens: int) -> None:
    """One forward and backward pass; gradients stay."""
    ids = torch.randint(0, 1000, (1, tokens))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, -loss_tokens:] = True
    sequence_logps(model, ids, mask).logps.sum().backward()


def measure(tokens: int, loss_tokens: int, checkpointing: bool) -> dict[str, float]:
    """Growth of the peak over what is there before a step whose gradients exist already."""
    config = TrainConfig(
        model="", buffer="", out="", dtype="float32", gradient_checkpointing=checkpointing
    )
    costs = Costs(SHAPES, config, "lora", Assumptions())
    setup = Setup("lora", 1, checkpointing)
    memory = costs.memory(setup, MicroBatch((tokens,), loss_tokens))
    planned = memory.activations + max(memory.layer, memory.logps)
    base = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES.to_dict()), dtype=torch.float32)
    base.requires_grad_(False)
    model = add_adapter(base, config, "").train()
    checkpoint(model, config, torch.device("cpu"))
    step(model, 32, 8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    step(model, tokens, loss_tokens)
    took = resident("VmHWM") - before
    return {
        "tokens": tokens, "checkpointing": checkpointing, "planned_mib": round(planned / MIB, 1),
        "measured_mib": round(took / MIB, 1), "planned_over_measured": round(planned / took, 3),
    }  # fmt: skip


def main() -> None:
    """Measure both ways, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--loss-tokens", type=int, default=256)
    parser.add_argument("--one", choices=("with", "without"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "plan_memory.json"
    )
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.tokens, given.loss_tokens, given.one == "with")))
        return
    rows = []
    for way in ("without", "with"):
        # Every tensor from pages of its own, so that what is freed leaves the process.
        apart = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, *sys.argv, "--one", way]
        done = subprocess.run(command, check=True, env=apart, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "machine": machine("torch", "transformers", "peft"),
        "command": f"python benchmarks/plan_memory.py --tokens {given.tokens}", "rows": rows,
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
