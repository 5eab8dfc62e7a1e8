"""What the fused layers replace, as transformers writes it."""

import torch
from torch.nn.functional import silu


def plain_norm(rows, weight, eps=1e-6):
    """Root-mean-square norm."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(rows.dtype)


def plain_gated(gate, up):
    """A gated unit."""
    return silu(gate) * up
