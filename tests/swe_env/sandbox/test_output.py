from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from swe_env.sandbox.output import Capture


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.integers(0, 200), st.integers(1, 40))
def test_head_and_tail_whatever_the_chunks(text, limit, chunk):
    capture = Capture(limit)
    data = text.encode("utf-8", "replace")
    text = data.decode()
    for start in range(0, len(data), chunk):
        capture.feed(data[start : start + chunk])
    assert capture.cut == (len(text) > limit)
    if len(text) <= limit:
        assert capture.text() == text
    else:
        head, tail = limit - limit // 2, limit // 2
        note = f"\n[… {len(text) - limit} characters left out …]\n"
        assert capture.text() == text[:head] + note + (text[-tail:] if tail else "")


def test_an_unfinished_character_is_replaced():
    capture = Capture(100)
    capture.feed("é".encode()[:1])
    assert capture.text() == "\ufffd"


def test_memory_stays_bounded():
    capture = Capture(1000)
    for _ in range(2000):
        capture.feed(b"x" * 65536)
    assert len(capture.text()) < 1100
    assert len(capture._tail) <= 1000
