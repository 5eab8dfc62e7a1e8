"""`pack_linear`: weights in the layout of the CPU's matrix kernels, for few rows at a time.

A decoding step multiplies each weight matrix by as many rows as there are episodes. On a CPU the
plain layout reaches a fraction of the arithmetic peak there: SmolLM2-135M, float32, 2 cores with
AVX2, one step of 6 rows took 1.5 times as long as with packed weights, one of 24 rows 1.25 times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_SMALLEST = 64
"""Matrices thinner than this (LoRA's) stay as they are: packing gains nothing."""


class PackedLinear(nn.Module):
    """A linear layer without gradients whose weight is kept in oneDNN's layout only."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        """`rows` is the number of rows the layout is chosen for; any number works."""
        super().__init__()
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """What the layer it was made of gives, up to rounding."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.packed, self.bias, "none", [], ""
        )
        return product


def can_pack(model: Any) -> bool:
    """Whether the model's linear layers can be packed: a CPU and type that oneDNN packs for."""
    ops: Any = torch.ops.mkldnn
    if torch.device(model.device).type != "cpu":
        return False
    if not hasattr(ops, "_reorder_linear_weight") or not hasattr(ops, "_linear_pointwise"):
        return False
    if model.dtype == torch.bfloat16:  # emulated elsewhere
        return bool(ops._is_mkldnn_bf16_supported())
    return bool(model.dtype == torch.float32)


def pack_linear(module: nn.Module, rows: int, *, keep: nn.Module | None = None) -> None:
    """Replace the linear layers within `module`, in place; `keep` stays as it is.

    Subclasses (quantised layers, adapters) stay, the layers inside them are packed.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            if child is not keep and min(child.weight.shape) >= _SMALLEST:
                setattr(module, name, PackedLinear(child, rows))
        else:
            pack_linear(child, rows, keep=keep)
