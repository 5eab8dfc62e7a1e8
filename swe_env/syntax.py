"""`parse`: Python source as a syntax tree, safe to call from many threads.

CPython up to 3.12 counts the depth of a tree under construction in one place for all threads, so
that two at once can end in "SystemError: AST constructor recursion depth mismatch"; and silencing
the warnings about someone else's code changes filters that all threads share.
"""

from __future__ import annotations

import ast
import threading
import warnings

_ONE = threading.RLock()  # a finalizer may parse while a tree is made


def parse(source: str | bytes) -> ast.Module:
    """The module's tree; warnings that the source gives rise to are not shown.

    Raises:
        SyntaxError: it is not Python.
        ValueError: it holds NUL bytes.
        RecursionError, MemoryError: it is nested too deeply.
    """
    with _ONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)
