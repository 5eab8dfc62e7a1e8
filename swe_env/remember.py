"""`by_content`: a function of a file's content gives what it gave before, without keeping the file.

Attempts at a task look at the same files, and a job goes through many tasks in turn: what is
remembered are results, by a digest of what they are of.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

Content = TypeVar("Content", str, bytes)
Found = TypeVar("Found")


def by_content(
    most: int,
) -> Callable[[Callable[[Content], Found]], Callable[[Content], Found]]:
    """Remember a function's results, the `most` that were asked for last; from any thread."""

    def remembering(function: Callable[[Content], Found]) -> Callable[[Content], Found]:
        known: OrderedDict[bytes, Found] = OrderedDict()
        lock = threading.Lock()

        @functools.wraps(function)
        def remembered(content: Content) -> Found:
            data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
            key = hashlib.blake2b(data, digest_size=16).digest()
            with lock:
                if key in known:
                    known.move_to_end(key)
                    return known[key]
            found = function(content)
            with lock:
                known[key] = found
                if len(known) > most:
                    known.popitem(last=False)
            return found

        return remembered

    return remembering
