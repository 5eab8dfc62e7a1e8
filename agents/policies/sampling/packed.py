"""`pack_linear`: weights in the layout of the CPU's matrix kernels, for few rows at a time.

A decoding step multiplies each weight matrix by as many rows as there are episodes. On a CPU the
plain layout reaches a fraction of the arithmetic peak there: SmolLM2-135M, float32, 2 cores with
AVX2, one step of 6 rows took 1.5 times as long as with packed weights, one of 24 rows 1.25 times.
"""

from __future__ import annotations

import sys
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


class PackedLora(nn.Module):
    """A LoRA layer for sampling: packed base weight, scaling folded into one factor.

    Computes what peft's layer does (the low-rank part in the adapter's own type, one rounding to
    the base's), with half the operations.
    """

    def __init__(self, layer: Any, adapter: str, rows: int) -> None:
        """`layer` is peft's, `adapter` the name of its one active adapter."""
        super().__init__()
        self.base = PackedLinear(layer.get_base_layer(), rows)
        self.down = layer.lora_A[adapter].weight.detach()
        self.up = layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """What the layer it was made of gives, up to rounding."""
        product: torch.Tensor = self.base(rows)
        low = nn.functional.linear(rows.to(self.down.dtype), self.down)
        return product.add_(nn.functional.linear(low, self.up))


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

    Plain LoRA layers are replaced whole; other adapters' layers stay, they may read the weight.
    """
    for name, child in module.named_children():
        if _adapted(child):
            adapter = _plain_lora(child)
            if adapter:
                setattr(module, name, PackedLora(child, adapter, rows))
        elif type(child) is nn.Linear:
            if child is not keep and min(child.weight.shape) >= _SMALLEST:
                setattr(module, name, PackedLinear(child, rows))
        else:
            pack_linear(child, rows, keep=keep)


def _adapted(layer: nn.Module) -> bool:
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)


def _plain_lora(layer: Any) -> str:
    """Name of the one active adapter of a peft layer that only adds B A x, else empty."""
    if type(layer) is not sys.modules["peft"].tuners.lora.Linear:
        return ""
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or min(base.weight.shape) < _SMALLEST:
        return ""
    if len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        return ""
    name: str = layer.active_adapters[0]
    variant = name in layer.lora_variant  # DoRA and others compute something else
    return "" if variant or layer.lora_B[name].bias is not None else name
