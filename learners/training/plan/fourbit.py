"""LoRA on layers in 4 bits as peft computes it, for plans made without bitsandbytes.

Where weights are in 4 bits, peft gives a layer a class of its own (``lora.bnb.Linear4bit``), which
`learners.ops.lora.lean_lora` leaves as it is: each adapted layer widens its input to float32, and
keeps that copy for the backward pass.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora.layer import Linear


def as_four_bit(model: nn.Module) -> int:
    """Let the LoRA layers of a model keep what `Linear4bit` keeps; gives their number.

    The weights stay what they are: bitsandbytes' product saves no input either.
    """
    from peft.tuners.lora.layer import Linear

    layers = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        untyped: Any = layer
        vars(layer).pop("swe_made", None)
        untyped.forward = types.MethodType(_forward, layer)
    return len(layers)


def _forward(self: Linear, x: Tensor) -> Tensor:
    """``Linear4bit.forward`` of peft 0.21 outside autocast."""
    untyped: Any = self
    result: Tensor = untyped.base_layer(x).clone()
    for name in self.active_adapters:
        if name in untyped.lora_A:
            down, up = untyped.lora_A[name], untyped.lora_B[name]
            low = down(untyped.lora_dropout[name](x.to(down.weight.dtype)))
            result = result + (up(low) * self.scaling[name]).to(result.dtype)
    return result
