"""`Assumptions`: every figure of a plan that is not arithmetic on shapes, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from swe_env.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a plan takes for granted; each can be replaced (``--assume NAME=VALUE``)."""

    utilisation: float = 0.40
    """Share of the card's dense peak (bf16's, or float32's in that type) a step reaches, attention
    counted: on an H200 in bf16 0.42 to 0.51 where it is kept busy, less for small models and short
    sequences."""
    bandwidth_utilisation: float = 0.80
    """Share of the memory bandwidth that reading weights reaches. A guess."""
    scaling: float = 0.90
    """Speed of a GPU among several over its speed alone, with the same work. A guess: links between
    cards are not modelled."""
    attention_backward: float = 2.5
    """Backward over forward work of flash attention: five matrix products for two
    (arXiv 2205.14135, algorithm 4)."""

    trained_bytes: int = 4
    """Of a trained weight: the learner keeps adapters in float32, and full training too."""
    gradient_bytes: int = 4
    optimizer_bytes: int = 8
    """AdamW: two float32 moments a trained weight."""
    quantised_bits: float = 4.127
    """Of a QLoRA weight: NF4, 8-bit scales of 64-weight blocks, a float32 scale for 256 of those
    (arXiv 2305.14314: 0.127 bits for the scales)."""
    quantised_experts: bool = False
    """Whether QLoRA also quantises stacked experts. transformers 5.23 hands bitsandbytes modules
    of type ``nn.Linear`` only, and experts are stacked parameters."""

    gathered_layers: int = 2
    """FSDP: layers whose whole weights lie on every GPU at a time (one used, one prefetched)."""
    context_bytes: int = GIB
    """CUDA context, cuBLAS work space, communication buffers. A guess."""
    fragmentation: float = 0.05
    """Of the card's memory, lost to the allocator. A guess."""
    characters_per_token: float = 3.5
    """Of text recorded without token ids. A guess; only used where ids are missing."""

    def changed(self, **values: Any) -> Assumptions:
        """With some fields replaced.

        Raises:
            ConfigError: there is no such field, or the value is no number or makes no sense.
        """
        known = {field.name for field in fields(self)}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(
                    f"A plan assumes no {name!r}; it has: {', '.join(sorted(known))}."
                )
            if not isinstance(value, int | float):
                raise ConfigError(f"The assumption {name!r} must be a number, not {value!r}.")
            _check_range(name, value)
        return replace(self, **values)


_SHARES = {"utilisation", "bandwidth_utilisation", "scaling"}
_POSITIVE = {"attention_backward", "quantised_bits", "characters_per_token"}


def _check_range(name: str, value: float) -> None:
    if name in _SHARES:
        fits, wanted = 0 < value <= 1, "a share above 0 and at most 1 (0.4 for 40%)"
    elif name in _POSITIVE:
        fits, wanted = 0 < value < math.inf, "above 0"
    elif name == "fragmentation":
        fits, wanted = 0 <= value < 1, "a share of the memory below 1 (0.05 for 5%)"
    elif name == "quantised_experts":
        fits, wanted = value in (0, 1), "0 or 1"
    else:
        fits, wanted = 0 <= value < math.inf, "at least 0"
    if not fits:
        raise ConfigError(f"The assumption {name!r} must be {wanted}, not {value!r}.")
