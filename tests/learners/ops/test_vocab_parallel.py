"""`token_logps` under tensor parallelism: two processes (gloo, CPU) with half the words each."""

import json
import os
import subprocess
import sys

import pytest

from tests.learners.ops.vocab_launched import CASES


@pytest.mark.timeout(300)
def test_two_processes_with_half_the_words_give_the_values_and_gradients_of_one(tmp_path):
    told = tmp_path / "found.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "tests.learners.ops.vocab_launched", str(told),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(told.read_text())
    for name in CASES:
        assert found[name] < 1e-11, name
    assert found["frozen head has a gradient"] == 0
    assert "must cut it by words" in found["refused"]
