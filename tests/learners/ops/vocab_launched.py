"""What each of two processes runs: a cut LM head against the whole one."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from learners.ops import token_logps
from swe_env.errors import ConfigError
from tests.learners.ops.test_logps import draw

CASES = {
    "plain": {},
    "softcap and scale": {"softcap": 3.0, "scale": 1.7},
    "odd vocabulary": {"vocab": 51},
    "fewer words than a process's share": {"vocab": 1},
}


def run(mesh, *, vocab=50, biased=True, **shape):
    """Largest differences of values and of each gradient."""
    hidden, weight, bias, targets = draw(vocab=vocab, dtype=torch.float64)
    results = []
    for cut in (False, True):
        h, w, b = (x.clone() for x in (hidden, weight, bias))
        if cut:
            w, b = (distribute_tensor(x, mesh, [Shard(0)]) for x in (w, b))
        for x in (h, w, b):
            x.requires_grad_()
        logps, entropies = token_logps(h, w, targets, bias=b, chunk_size=7, **shape)
        (logps.sum() + (0.3 * entropies * torch.arange(23)).sum()).backward()
        whole = [x.grad.full_tensor() if cut else x.grad for x in (w, b)]
        results.append([logps, entropies, h.grad, *whole])
    return max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    found = {name: run(mesh, **case) for name, case in CASES.items()}
    hidden, weight, _, targets = draw()
    hidden.requires_grad_()
    frozen = distribute_tensor(weight, mesh, [Shard(0)])
    token_logps(hidden, frozen, targets)[0].sum().backward()
    found["frozen head has a gradient"] = float(frozen.grad is not None)
    try:
        token_logps(hidden, distribute_tensor(weight, mesh, [Replicate()]), targets)
    except ConfigError as error:
        found["refused"] = str(error)
    if distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    distributed.destroy_process_group()
