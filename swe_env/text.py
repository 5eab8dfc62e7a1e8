"""Shortening text for a reader with a limited context."""

from __future__ import annotations


def shorten(text: str, limit: int) -> str:
    """`text`, or its head and tail with the number of characters left out between them.

    The result has at most `limit` characters (when `limit` is at least 80).
    """
    if len(text) <= limit:
        return text
    room = limit - 60
    head, tail = text[: room // 2], text[len(text) - (room - room // 2) :]
    return f"{head}\n[… {len(text) - len(head) - len(tail)} characters left out …]\n{tail}"
