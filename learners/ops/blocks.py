"""`blocks`: rows a few at a time, so that what is made of them stays in a CPU's cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MM_WIDENS = hasattr(torch.ops.aten.mm, "dtype")
"""Whether this torch's `mm` can give float32 of half-precision arguments (CUDA; 2.8 and later)."""

_ROWS = {"cpu": 512}
_ELSEWHERE = 8192


def blocks(rows: Tensor) -> list[slice]:
    """All of `rows`, (rows, …), in slices of like size."""
    most = _ROWS.get(rows.device.type, _ELSEWHERE)
    size = math.ceil(len(rows) / max(math.ceil(len(rows) / most), 1))
    return [slice(start, start + size) for start in range(0, len(rows), max(size, 1))]
