from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.viewer.text import duration, number, percent, points, visible


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_invisible_that_acts_is_left(text):
    shown = visible(text)
    assert not {ord(c) for c in shown} & (
        {*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F)} - {9, 10}
    )
    shown.encode("utf-8")


def test_ordinary_text_is_untouched():
    text = "naïve\t→ 木 🙂\nend"
    assert visible(text) == text
    assert visible("a\r\nb\rc") == "a\nb\\x0dc"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0004, "0 ms"),
        (0.84, "840 ms"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7_800, "2 h 10 min"),
        (math.nan, "–"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_figures():
    assert (percent(0.125), percent(math.nan), percent(1.0, 0)) == ("12.5%", "–", "100%")
    assert (points(0.034), points(-0.2), points(0.0)) == ("+3.4", "-20.0", "±0.0")
    assert (number(12_345.0), number(0.123456), number(7)) == ("12,345", "0.1235", "7")
