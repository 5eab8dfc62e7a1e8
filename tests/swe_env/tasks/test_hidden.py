"""Hidden tests leave the file whole otherwise."""

from __future__ import annotations

import pytest

from swe_env.tasks.synth.hidden import function_of, without_tests

SOURCE = """import pytest


@pytest.mark.parametrize("x", [
    1,
])
def test_one(x):
    assert x


def test_two():  # stays
    pass


class TestThings:
    def test_a(self):
        pass

    def test_b(self):
        pass
"""


def test_a_function_goes_with_decorators_and_the_rest_stays():
    left = without_tests(SOURCE, [("test_one",)])
    assert left == SOURCE[: SOURCE.index("@pytest")] + SOURCE[SOURCE.index("def test_two") :]


def test_a_class_left_empty_gets_pass():
    left = without_tests(SOURCE, [("TestThings", "test_a"), ("TestThings", "test_b")])
    assert left is not None
    assert left.endswith("class TestThings:\n    pass\n")
    assert without_tests(SOURCE, [("TestThings", "test_a")]) == SOURCE.replace(
        "    def test_a(self):\n        pass\n\n", ""
    )


@pytest.mark.parametrize(
    "name", [("test_none",), ("TestOther", "test_a"), ("TestThings", "test_c")]
)
def test_a_test_that_is_not_written_there_cannot_be_hidden(name):
    assert without_tests(SOURCE, [name]) is None


def test_ids_give_function_names():
    assert function_of("a/b.py::TestX::test_y[1::2-[z]]") == ("TestX", "test_y")
