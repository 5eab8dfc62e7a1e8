"""`token_logps` under tensor parallelism: two processes (gloo, CPU) with half the words each."""

import pytest

from tests.learners.ops.launched import two_processes
from tests.learners.ops.vocab_launched import CASES


@pytest.mark.timeout(300)
def test_two_processes_with_half_the_words_give_the_values_and_gradients_of_one(tmp_path):
    found = two_processes("tests.learners.ops.vocab_launched", tmp_path / "found.json")
    for name in CASES:
        assert found[name] < 1e-11, name
    assert found["frozen head has a gradient"] == 0
    assert "must cut it by words" in found["refused"]
