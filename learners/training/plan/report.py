"""A plan as text for a terminal and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from learners.training.plan.assumptions import GIB
from learners.training.plan.costs import Memory
from learners.training.plan.planner import Plan


def as_dict(plan: Plan) -> dict[str, Any]:
    """Plain data, JSON-ready; bytes, tokens, tokens/s and hours."""
    record = asdict(plan)
    for name in ("memory", "memory_other"):
        memory: Memory = getattr(plan, name)
        record[name] |= {"fixed": memory.fixed, "total": memory.total}
    record["longest"] |= {"rows": plan.longest.rows, "width": plan.longest.width}
    return record


def as_text(plan: Plan) -> str:
    """A page: parameters, memory with and without checkpointing, time, verdict, notes."""
    counts, setup = plan.counts, plan.setup
    on, off = (
        (plan.memory, plan.memory_other)
        if setup.checkpointing
        else (plan.memory_other, plan.memory)
    )
    fit_on, fit_off = plan.longest_fits, plan.longest_fits_other
    if not setup.checkpointing:
        fit_on, fit_off = fit_off, fit_on
    lines = [
        f"{plan.model}, {setup.method}, {setup.gpus} x {plan.gpu.name}",
        f"  parameters      {_count(counts.total)} in all, {_count(counts.active)} for a token, "
        f"{_count(counts.trainable)} trained",
        f"  data            {plan.samples:,} samples, {plan.tokens:,} tokens an epoch, "
        f"{plan.steps:,} steps",
        f"  largest pass    {plan.longest.sizes} tokens, of which "
        f"{plan.longest.loss_tokens:,} are learned",
        "",
        f"  GiB on each GPU        {_mark('checkpointing', setup.checkpointing):>16}"
        f"{_mark('without', not setup.checkpointing):>16}",
    ]
    for label, name in _ROWS:
        lines.append(f"  {label:<23}{_gib(on, name):>16}{_gib(off, name):>16}")
    lines += [
        "  (* of these the largest counts; ** over before the first step)",
        f"  {'usable':<23}{plan.usable / GIB:>16,.2f}{plan.usable / GIB:>16,.2f}",
        f"  {'longest that fits':<23}{_tokens(fit_on):>16}{_tokens(fit_off):>16}",
        "",
        f"  speed           {plan.tokens_per_second:,.0f} tokens/s if {plan.gpu.name} reaches "
        f"{plan.assumptions.utilisation:.0%} of its peak (assumed)",
        f"  time            {_time(plan.hours)}, of which {_time(plan.reference_hours)} for the "
        "reference",
        "",
        plan.verdict,
        *(f"Note: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


_ROWS = (
    ("weights", "weights"),
    ("adapter", "adapter"),
    ("optimizer", "optimizer"),
    ("gradients", "gradients"),
    ("CUDA and buffers", "overhead"),
    ("activations kept", "activations"),
    ("a layer's backward *", "layer"),
    ("log-probabilities *", "logps"),
    ("autocast's copies *", "casts"),
    ("reference pass **", "reference"),
    ("at the worst moment", "total"),
)
"""Label and field."""


def _mark(label: str, chosen: bool) -> str:
    return f"[{label}]" if chosen else label


def _gib(memory: Memory, name: str) -> str:
    return f"{getattr(memory, name) / GIB:,.2f}"


def _tokens(tokens: int) -> str:
    return f"{tokens:,}" if tokens else "nothing"


def _count(parameters: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:,.2f} {name}"
    return f"{parameters:,}"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:,.1f} minutes" if hours >= 1 / 60 else f"{hours * 3600:,.1f} seconds"
