from concurrent.futures import ThreadPoolExecutor

import pytest

from swe_env.remember import by_content


def test_the_same_content_is_looked_at_once_and_the_oldest_is_forgotten():
    seen = []

    @by_content(2)
    def length(text: str) -> int:
        """Counts."""
        seen.append(text)
        return len(text)

    assert [length(text) for text in ("a", "bb", "a", "ccc", "a", "bb")] == [1, 2, 1, 3, 1, 2]
    assert seen == ["a", "bb", "ccc", "bb"]
    assert length.__doc__ == "Counts."
    assert length("\ud800") == 1


def test_what_fails_is_not_remembered():
    calls = []

    @by_content(4)
    def parse(data: bytes) -> int:
        calls.append(data)
        return int(data)

    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            parse(b"x")
    assert len(calls) == 2


def test_many_threads():
    @by_content(8)
    def double(text: str) -> str:
        return text * 2

    words = [str(number % 20) for number in range(2000)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(double, words)) == [word * 2 for word in words]
