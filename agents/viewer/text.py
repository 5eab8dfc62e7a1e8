"""Making an agent's output safe and short enough to show; it is hostile until shown otherwise."""

from __future__ import annotations

import math

from agents.selection.verifier import shorten
from swe_env.replay.trajectory import Step

SHOWN_CHARS = 20_000
"""Longest single text that a page shows; the middle of longer ones is left out and counted."""

_ACTING = (
    *(code for code in range(0x20) if chr(code) not in "\t\n"),
    *range(0x7F, 0xA0),  # C1 controls: 0x9B alone starts a terminal escape sequence
    *range(0x202A, 0x202F),  # bidirectional overrides: text would not read as it is
    *range(0x2066, 0x206A),
    0xFFFE,
    0xFFFF,
)
_VISIBLE = {c: f"\\x{c:02x}" if c < 0x100 else f"\\u{c:04x}" for c in _ACTING}


def visible(text: str) -> str:
    r"""`text` with control and direction characters written out, so that none takes effect.

    An escape reads \x1b. Line breaks and tabs stay; lone surrogates become U+FFFD.
    """
    plain = text.replace("\r\n", "\n").translate(_VISIBLE)
    return plain.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def clip(text: str, limit: int = SHOWN_CHARS) -> str:
    """`shorten` for display."""
    return shorten(text, limit)


def percent(value: float, digits: int = 1) -> str:
    """A share in percent; an en dash for NaN."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}%"


def interval(low: float, high: float) -> str:
    """Two shares as [low, high] in percent; empty for NaN."""
    return "" if math.isnan(low) else f"[{percent(low)}, {percent(high)}]"


def points(value: float) -> str:
    """A signed difference of shares in percentage points."""
    if math.isnan(value):
        return "–"
    return "±0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 840 ms, 12.3 s, 4 min 05 s, 2 h 10 min."""
    if math.isnan(seconds):
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float) -> str:
    """Up to four significant digits, thousands separated."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def surprisal(step: Step) -> float:
    """Mean −log p of the sampled tokens in nats, which estimates the entropy; NaN without any."""
    logprobs = step.metrics.logprobs if step.metrics is not None else ()
    return -math.fsum(logprobs) / len(logprobs) if logprobs else math.nan


def sampled(step: Step) -> int:
    """Tokens the policy sampled in this step; 0 when it recorded none."""
    return len(step.metrics.completion_token_ids) if step.metrics is not None else 0
