"""What each of two processes runs: shared rows of several families against one process's own."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from learners.ops import pack, packed_logps, prepare
from learners.ops.context import Context, context_logps
from tests.learners.models import tiny

CPU = torch.device("cpu")


def row():
    """Branches with shared beginnings beside plain sequences, of an odd length."""
    first = [3 + 7 * at % 250 for at in range(30)]
    sequences = [first + [90 + at for at in range(17)], first[:21] + [60] * 9, [5, 9, 250, 7, 11]]
    masks = [[at % 5 in (2, 3) and at > 0 for at in range(len(ids))] for ids in sequences]
    return pack(list(zip(sequences, masks, strict=True)), CPU, min_share=0.1)


def gradients(model, sums):
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    loss = (weights * sums.logps).sum() - 0.3 * (weights * sums.entropies).sum()
    loss.backward()
    found = torch.cat([p.grad.flatten().double() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return found


def compare(family, checkpointing=False):
    """Largest differences of (sums, gradients) between the shared row and the whole one."""
    model = tiny(family).double()
    reason = prepare(model, "segments", CPU)
    assert not reason, reason
    whole = packed_logps(model, row(), "segments")
    expected = gradients(model, whole)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    context = Context(distributed.get_world_size(), distributed.get_rank())
    shared = context_logps(model, row(), context)
    found = gradients(model, shared)
    alone = float((found - expected).abs().max())
    distributed.all_reduce(found)
    return {
        "sums": max(float((a - b).abs().max()) for a, b in zip(shared, whole, strict=True)),
        "gradients": float((found - expected).abs().max()),
        "alone": alone,
    }


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    found = {family: compare(family) for family in ("gpt2", "llama", "gemma3", "gemma2", "mistral")}
    found["llama, checkpointed"] = compare("llama", checkpointing=True)
    if distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    distributed.destroy_process_group()
