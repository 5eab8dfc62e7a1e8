"""Source as a tree, from many threads at once."""

import ast
import gc
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from swe_env import env
from swe_env.syntax import parse


class _Yields:
    """Lets another thread run while the collector takes it away."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0)


def test_threads_parse_at_the_same_time() -> None:
    """Without the lock CPython 3.11 fails here in most runs with a SystemError."""
    source = Path(env.__file__).read_text()
    lost: list[SystemError] = []

    def run() -> None:
        for _ in range(60):
            for _ in range(20):
                _Yields()
            try:
                parse(source)
            except SystemError as error:
                lost.append(error)

    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
    assert not lost


def test_the_sources_own_warnings_are_not_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = parse('a = "\\d"\n')
    assert isinstance(tree.body[0], ast.Assign)


@pytest.mark.parametrize("source", ["def (", "a\0b"])
def test_what_is_not_python_raises_as_ast_does(source: str) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        parse(source)
