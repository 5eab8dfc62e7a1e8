import importlib.util
import json
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed with this torch"
)
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_kernels_give_what_pytorch_gives(dtype, rounding):
    done = subprocess.run(
        [sys.executable, "-m", "tests.learners.ops.fused_interpreted", dtype],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 14
    exact = {"log Z": 2e-6, "entropy": 2e-6, "low-rank product": 4e-5}
    for name, apart in found:
        assert apart < exact.get(name, rounding), name
