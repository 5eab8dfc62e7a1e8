"""The benchmarks run, small, on a repository made here; the figures themselves are not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swe_env.sandbox import get
from swe_env.sandbox.conformance.bench import git

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from harness import Times, family, interleave, memory_of  # noqa: E402
from render import BEGIN, END, put, render  # noqa: E402

FAKE_PEER = """
import json, sys
print(json.dumps({"version": "1", "ways": ["bubblewrap"]}), flush=True)
for line in sys.stdin:
    print(0.001, flush=True)
"""


def test_sides_take_turns_and_warm_up_is_dropped():
    order: list[str] = []

    def side(name: str, seconds: float):
        return lambda: (order.append(name), seconds)[1]

    sides = {"a": side("a", 1.0), "b": side("b", 4.0), "c": side("c", 2.0)}
    times = interleave(sides, rounds=4, warm_up=2)
    assert "".join(order) == "abcbcacababcbcacab"
    assert [len(found.seconds) for found in times.values()] == [4, 4, 4]
    assert times["b"].plain() == {"median": 4e3, "q1": 4e3, "q3": 4e3, "least": 4e3, "rounds": 4}
    assert times["a"].share_of(times["b"]) == 0.25
    assert times["b"].beyond(times["c"]) == 2000


def test_rounds_are_compared_in_pairs():
    # Both sides slow down together: the share stays, though the medians of unlike rounds would not.
    ours, theirs = Times.of([1.0, 2.0, 10.0]), Times.of([2.0, 4.0, 20.0])
    assert ours.share_of(theirs) == 0.5
    assert Times.of([4.0, 1.0, 3.0, 2.0]).median == 2500


def test_memory_of_a_family_counts_children():
    child = "x = bytearray(60_000_000); print(1, flush=True); input()"
    alone = memory_of(family(os.getpid()))
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        with_child = memory_of(family(os.getpid()))
        process.stdin.close()
    assert with_child - alone > 55_000_000


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "sympy"
    files = {"sympy/core/cache.py": "x = 1\n", "doc/index": "doc\n", "sympy/a.py": "import os\n"}
    files["sympy/b.py"] = "_eval_is_positive = 1\n"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "base")
    return folder, git(folder, "rev-parse", "HEAD").decode().strip()


@pytest.mark.skipif(bool(get("local").available()), reason="no namespaces here")
def test_the_whole_benchmark_runs_and_tells_what_it_left_out(repository, tmp_path):
    folder, commit = repository
    out = tmp_path / "env.json"
    peer = tmp_path / "peer"
    peer.write_text(f"#!{sys.executable}\n{FAKE_PEER}")
    peer.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "env.py"), "--repository", str(folder),
         "--commit", commit, "--scale", "0.01", "--environments", "2", "--out", str(out),
         "--peers-python", f"mini-swe-agent={peer}", "--peers-python", "swe-rex=/bin/false"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert out.exists(), done.stderr
    result = json.loads(out.read_text())
    missed = [goal for goal in result["goals"] if not goal["met"]]
    assert done.returncode == (1 if missed else 0)
    assert result["checkout"]["files"] == 4
    assert result["peers"] == {"mini-swe-agent": "1"}
    assert set(result["left_out"]) == {"swe-rex", "inspect-ai"}
    assert result["figures"]["echo"]["mini-swe-agent bubblewrap"]["median"] == 1
    names = [goal["name"] for goal in result["goals"]]
    assert len(names) == 10
    shown = render(result)
    assert all(f"| {name} |" in shown for name in names)
    assert shown in done.stdout
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        put(page, shown)
    assert page.read_text() == f"before\n{BEGIN}\n\n{shown}\n\n{END}\nafter\n"


def gpu_benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "rollouts_gpu.py"), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BENCHMARKS.parent)},
    )  # fmt: skip


def test_the_gpu_benchmark_refuses_without_a_gpu_and_works_small_on_a_cpu(tmp_path):
    refused = gpu_benchmark()
    assert refused.returncode == 1
    assert refused.stderr.startswith("There is no CUDA device here")
    assert refused.stderr.count("\n") == 1
    out = tmp_path / "gpu.json"
    done = gpu_benchmark("--device", "cpu", "--tiny", "--dtype", "float32", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    mine, theirs = result["last_round"]["continuous"], result["last_round"]["generate"]
    # Both generate the same work; the engine computes no token of a history twice.
    assert mine["prefilled"] < theirs["prefilled"] <= mine["prefilled"] + mine["reused"] + 18
    assert 0 < result["ratio"] == pytest.approx(sum(result["ratios"]) / 2, abs=0.02)
    assert mine["mean_batch"] > 1
