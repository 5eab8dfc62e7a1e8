"""The planner's memory of one training step against what the process really takes, on a CPU.

    python benchmarks/plan_memory.py --model smollm2 --tokens 768

Two figures of one step (log-probabilities of one sequence, backward), beyond weights, adapter and
gradients: the growth of the process's peak resident memory, which knows nothing of tensors, and
what the plan says. A CPU's attention kernel and its blocks of widened weights differ from a GPU's.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch

from agents.policies.hub import load
from learners.ops import sequence_logps
from learners.training.config import TrainConfig
from learners.training.model import add_adapter, trainable
from learners.training.plan.assumptions import Assumptions
from learners.training.plan.costs import Costs, Setup
from learners.training.plan.models import model_config
from learners.training.plan.samples import MicroBatch

MIB = 1 << 20


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def step(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """One forward and backward pass; gradients stay."""
    sequence_logps(model, ids, mask).logps.sum().backward()


def measured(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> int:
    """Growth of the peak over what is there before a step whose gradients exist already."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    step(model, ids, mask)
    return resident("VmHWM") - before


def main() -> None:
    """Measure with and without checkpointing and print both beside the plan's figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=768)
    parser.add_argument("--loss-tokens", type=int, default=200)
    arguments = parser.parse_args()
    config = TrainConfig(model=arguments.model, buffer="", out="")
    costs = Costs(model_config(arguments.model), config, "lora", Assumptions())
    base, _ = load(arguments.model, dtype="bfloat16", device="cpu")
    base.requires_grad_(False)
    model = add_adapter(base, config, "").train()
    real = sum(p.numel() for p in trainable(model))
    print(json.dumps({"adapter": real, "planned_adapter": costs.counts.adapter}))
    ids = torch.randint(0, 1000, (1, arguments.tokens))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, -arguments.loss_tokens :] = True
    step(model, ids[:, -16:], mask[:, -16:])  # the gradients and the allocator's pools
    batch = MicroBatch((arguments.tokens,), arguments.loss_tokens)
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        memory = costs.memory(Setup("lora", 1, checkpointing), batch)
        planned = memory.activations + max(memory.layer, memory.logps)
        took = measured(model, ids, mask)
        record = {
            "checkpointing": checkpointing, "planned_mib": round(planned / MIB, 1),
            "measured_mib": round(took / MIB, 1), "ratio": round(planned / took, 3),
        }  # fmt: skip
        print(json.dumps(record))


if __name__ == "__main__":
    main()
