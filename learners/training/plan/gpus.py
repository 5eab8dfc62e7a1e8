"""GPUs a plan can be made for: memory, dense bf16 and float32 peaks, memory bandwidth."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from swe_env.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card."""

    name: str
    memory: int
    """Bytes: the vendor's GB as 10^9. Cards report a few per cent more, which is reserve."""
    peak: float
    """bf16 matrix products a second without sparsity, in FLOP/s."""
    bandwidth: float
    """Of its memory, bytes/s."""
    float32_peak: float
    """float32 operations a second outside tensor cores, in FLOP/s: torch's float32 products use
    none (TF32) unless told to."""


def _gpu(name: str, gigabytes: int, bf16: float, terabytes_s: float, float32: float) -> Gpu:
    return Gpu(name, gigabytes * 10**9, bf16 * 1e12, terabytes_s * 1e12, float32 * 1e12)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # glennklockwood.com/garden/processors/A100 (cites NVIDIA's A100 data sheet); float32:
        # hmc-tech.com/gpu/nvidia-h100-vs-nvidia-a100-sxm-40gb.
        _gpu("A100-40", 40, 312, 1.555, 19.5),
        _gpu("A100-80", 80, 312, 2.039, 19.5),
        # glennklockwood.com/garden/processors/h100; float32: glennklockwood.com/garden/peak-FLOPS.
        _gpu("H100-80", 80, 989.4, 3.35, 66.9),
        # itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html (SXM, dense; the die and the
        # number of CUDA cores are the H100's, and so is the float32 peak).
        _gpu("H200-141", 141, 989, 4.8, 66.9),
        # docs.vultr.com/inference-cookbook/cuda/getting-started/hardware-overview (memory,
        # bandwidth) and glennklockwood.com/garden/processors/B200 (HGX, 1,000 W: peaks).
        _gpu("B200-179", 179, 2250, 8.0, 80),
        # mullet.se/product.html?product_id=355414 (NVIDIA's L40/L40S table: 362.05 dense).
        _gpu("L40S-48", 48, 362.05, 0.864, 91.6),
        # waredb.com/processor/nvidia-geforce-rtx-4090 and gigagpu.com/?p=34220 (float32
        # accumulation).
        _gpu("RTX4090-24", 24, 165.2, 1.008, 82.6),
    )
}
"""By name: the card and its GB."""


def gpu(name: str) -> Gpu:
    """The card of that name; the GB may be left out where there is one size only.

    Raises:
        ConfigError: there is none, or several; names them.
    """
    wanted = name.upper().replace(" ", "").replace("_", "-")
    if wanted in GPUS:
        return GPUS[wanted]
    sizes = [key for key in GPUS if key.rpartition("-")[0] == wanted]
    if len(sizes) == 1:
        return GPUS[sizes[0]]
    close = sizes or difflib.get_close_matches(wanted, GPUS, cutoff=0.6)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(
        f"There is no GPU {name!r} in the plan's table.{hint} It has: {', '.join(GPUS)}."
    )
