"""The learner's benchmarks run, small, on a CPU; the figures themselves are not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from learner_meter import Meter, resident  # noqa: E402

from tests.learners.models import byte_tokenizer  # noqa: E402


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_gpu_script_runs_on_a_cpu_with_tiny_models(tmp_path):
    """What one call had no time for, the next adds."""
    out = tmp_path / "gpu.json"
    asked = ("--device", "cpu", "--tiny", "--sides", "ours", "--out", str(out))
    for more, missing in ((("--minutes", "0.0001"), 1), (("--resume",), 0)):
        done = run("learner_gpu.py", *asked, *more)
        assert done.returncode == 0, done.stderr
        result = json.loads(out.read_text())
        assert len(result["not_played"]) == missing
    assert result["device"] == "cpu"
    points = result["points"]
    assert [point["call"] for point in points] == [0, 1]
    assert [point["tokens_each"] for point in points] == [96, 160]
    assert not any("failed" in point for point in points)
    assert all(point["agent_tokens_per_second"] > 0 for point in points)
    assert all(point["mfu"] is None and point["peak_bytes"] is None for point in points)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_gpu_script_says_in_a_sentence_that_there_is_no_gpu(tmp_path):
    done = run("learner_gpu.py", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("There is no CUDA GPU here: ")
    assert not (tmp_path / "gpu.json").exists()


def test_made_pairs_share_their_prompt_and_are_the_same_each_time(tmp_path):
    from learner_pairs import trajectories, write

    tokenizer = byte_tokenizer()
    made = list(trajectories(tokenizer, 2, seed=3))
    assert [t.to_dict() for t in made] == [t.to_dict() for t in trajectories(tokenizer, 2, seed=3)]
    counts = write(made, tmp_path / "buffer", tmp_path / "rows.json")
    assert counts["pairs"] == 2
    assert 0 < counts["agent_tokens"] < counts["tokens"]
    for row, chosen in zip(
        json.loads((tmp_path / "rows.json").read_text()), made[::2], strict=True
    ):
        assert len(row["chosen_ids"]) == len(row["chosen_agent"])
        steps = [step.metrics for step in chosen.agent_steps]
        assert row["prompt_ids"] == list(steps[0].prompt_token_ids)
        assert sum(row["chosen_agent"]) == sum(len(m.completion_token_ids) for m in steps)
        assert chosen.agent_steps[-1].tool_calls[0].function_name == "submit"


def test_the_meter_counts_what_comes_after_its_start():
    before = bytearray(b"x") * 80_000_000
    meter = Meter()
    meter.start()
    assert resident("VmRSS") > 80_000_000
    during = bytearray(b"x") * 50_000_000
    del during
    meter.step()
    del before
    figures = meter.figures()
    assert 45_000_000 < figures["peak_bytes"] < 80_000_000
    assert len(figures["seconds"]) == 1


def test_ratios_are_taken_within_a_round():
    from learner import ratios

    def side(seconds: float, peak: int) -> dict[str, object]:
        return {"seconds": [seconds], "peak_bytes": peak}

    counts = {"pairs": 2, "agent_tokens": 100}
    rounds = {
        f"dpo bfloat16 2 of 4, from {at}": {
            "counts": counts, "ours, keep": side(slow, 4), "trl, keep": side(2 * slow, 10)
        }
        for at, slow in enumerate((1.0, 5.0))
    }  # fmt: skip
    found = ratios(rounds)
    assert set(found) == {"dpo, keep"}
    assert found["dpo, keep"]["times_as_fast"] == 2
    assert found["dpo, keep"]["share_of_memory"] == 0.4
    assert found["dpo, keep"]["met"]
    assert found["dpo, keep"]["pairs"] == 4
