"""SWE-bench Lite without Docker: the gold patch resolves, the empty one does not; prints JSON.

Every instance of a file of rows is graded twice in a sandbox, with its gold patch and with none.
The logs of those runs are then read by the `swebench` package's own parsers, in a virtual
environment of its own (made on first use), and each test's verdict is compared with ours, which
came over the result channel. Finished instances are kept under `--out`, so that a run broken off
goes on. Repositories: `SWE_ENV_MIRRORS`, a folder of bare mirrors, or GitHub.

    python benchmarks/swebench_lite.py ROWS.jsonl --out runs/swebench-lite
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from swe_env import tasks
from swe_env.cache import build_once, cache_dir
from swe_env.errors import SweError
from swe_env.grading import PASSING, TestRun, grade, pytest_runner, runners, unit_runner
from swe_env.grading.ids import outcomes_of
from swe_env.grading.log_parsers import PARSERS
from swe_env.machine import commit, machine
from swe_env.repos import sandbox_spec
from swe_env.types import Task

PEER = "swebench==5.0.2"
PATCHES = ("gold", "empty")
LONG = ("outcomes", "fail_to_pass", "pass_to_pass", "commit")
"""Kept with each instance, too long for the result."""
READ = """\
import json, sys
from swebench.harness.grading import test_maintained, test_passed
from swebench.harness.log_parsers.python import MAP_REPO_TO_PARSER_PY
found = {}
for case in json.load(sys.stdin):
    log = open(case["log"], encoding="utf-8", errors="replace", newline="").read()
    said = MAP_REPO_TO_PARSER_PY[case["repo"]](log, None)
    fixed = {t: test_passed(t, said) for t in case["FAIL_TO_PASS"]}
    kept = {t: [test_passed(t, said), test_maintained(t, said)] for t in case["PASS_TO_PASS"]}
    found[case["log"]] = {"map": said, "fail_to_pass": fixed, "pass_to_pass": kept}
print(json.dumps(found))
"""
TIME = """\
import json, sys, time
from swebench.harness.log_parsers import PARSER_REGISTRY
log = open(sys.argv[1]).read()
found = {}
for name in sys.argv[2:]:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        said = PARSER_REGISTRY[name](log, None)
        times.append(time.perf_counter() - start)
    found[name] = [sorted(times)[3] * 1000, len(said)]
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", help="SWE-bench rows: .jsonl, .parquet, or owner/name on the hub")
    parser.add_argument("--out", type=Path, default=Path("runs/swebench-lite"))
    parser.add_argument("--sandbox", default="local")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--peer", default="", help="a Python that has swebench installed")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    # Whole logs, so that the other side reads what ours did not need.
    pytest_runner.OUTPUT = unit_runner.OUTPUT = 64 << 20
    found = tasks.load(f"swebench:{options.rows}?environment=recipe")
    done = [one(task, which, options) for task in found for which in PATCHES]
    peer = options.peer or str(peer_python())
    result = {
        "command": "python benchmarks/swebench_lite.py " + Path(options.rows).name,
        "commits": sorted({entry["commit"] for entry in done}),
        "machine": {**machine("swe-env"), "sandbox": options.sandbox},
        "summary": summary(found, done),
        "agreement": agreement(found, done, peer, options.out),
        "parsing_20k_lines_ms": parsing(peer, options.out),
        "instances": [{k: v for k, v in entry.items() if k not in LONG} for entry in done],
    }
    print(json.dumps(result, indent=1))


def one(task: Task, which: str, options: argparse.Namespace) -> dict[str, Any]:
    """Grade one patch of one task, or take what an earlier run found."""
    folder = options.out / task.instance_id
    kept = folder / f"{which}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    folder.mkdir(exist_ok=True)
    print(f"{task.instance_id} {which} …", file=sys.stderr, flush=True)
    entry: dict[str, Any] = {"instance_id": task.instance_id, "patch": which, "commit": commit()}
    started = time.perf_counter()
    try:
        spec = sandbox_spec(task)
        entry["build_seconds"] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()
        run: list[TestRun] = []
        report = recorded(task, task.patch if which == "gold" else "", spec, run, options)
    except SweError as error:
        entry |= {"resolved": None, "failure": f"{type(error).__name__}: {error}"}
        print(f"  {entry['failure']}", file=sys.stderr, flush=True)
        return entry
    entry["grade_seconds"] = round(time.perf_counter() - started, 2)
    entry["test_seconds"] = round(report.seconds, 2)
    (folder / f"{which}.log").write_text(run[-1].output, "utf-8", newline="")
    entry |= {
        "resolved": report.resolved,
        "error": report.error,
        "tampering": list(report.tampering),
        "tests": len(report.fail_to_pass) + len(report.pass_to_pass),
        "not_passed": {
            test: said
            for test, said in (report.fail_to_pass | report.pass_to_pass).items()
            if said not in PASSING
        },
        "outcomes": {**run[-1].also, **run[-1].outcomes},
        "fail_to_pass": report.fail_to_pass,
        "pass_to_pass": report.pass_to_pass,
    }
    kept.write_text(json.dumps(entry, indent=1))
    print(
        f"  resolved: {report.resolved} ({entry['grade_seconds']} s)", file=sys.stderr, flush=True
    )
    return entry


def recorded(
    task: Task, patch: str, spec: Any, runs: list[TestRun], options: argparse.Namespace
) -> Any:
    """`grade`, with what its run printed kept in `runs`."""
    runner = runners.get(task.log_parser)
    plain = runner.run

    def run(*args: Any, **settings: Any) -> TestRun:
        runs.append(plain(*args, **settings))
        return runs[-1]

    runner.run = run  # type: ignore[method-assign]
    try:
        return grade(task, patch, sandbox=options.sandbox, spec=spec, timeout=options.timeout)
    finally:
        del runner.run


def peer_python() -> Path:
    """The Python of a virtual environment with the `swebench` package."""

    def build(folder: Path) -> None:
        print(f"installing {PEER} …", file=sys.stderr, flush=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--relocatable", "--allow-existing", folder], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run([*uv, "pip", "install", "-q", "--python", python, PEER], check=True)

    return build_once(cache_dir("peers") / PEER, build) / "bin" / "python"


def read_by_peer(
    found: list[Task], done: list[dict[str, Any]], peer: str, out: Path
) -> dict[str, Any]:
    by_id = {task.instance_id: task for task in found}
    cases = [
        {
            "log": str((out / entry["instance_id"] / f"{entry['patch']}.log").resolve()),
            "repo": by_id[entry["instance_id"]].repo,
            "FAIL_TO_PASS": by_id[entry["instance_id"]].FAIL_TO_PASS,
            "PASS_TO_PASS": by_id[entry["instance_id"]].PASS_TO_PASS,
        }
        for entry in done
        if entry["resolved"] is not None
    ]
    ran = subprocess.run(
        [peer, "-c", READ], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)


def agreement(
    found: list[Task], done: list[dict[str, Any]], peer: str, out: Path
) -> dict[str, Any]:
    """Each test of the two lists: does it pass, by us and by the peer's parser of the same log?"""
    read = read_by_peer(found, done, peer, out)
    counts: Counter[str] = Counter()
    different = []
    only_printed = []
    for entry in done:
        if entry["resolved"] is None:
            continue
        log = str((out / entry["instance_id"] / f"{entry['patch']}.log").resolve())
        theirs = read[log]
        verdicts = {**theirs["fail_to_pass"]}
        verdicts |= {test: passed for test, (passed, _) in theirs["pass_to_pass"].items()}
        ours = entry["fail_to_pass"] | entry["pass_to_pass"]
        for test, passed in verdicts.items():
            same = (ours[test] in PASSING) == passed
            counts["same" if same else "different"] += 1
            if not same:
                said = {"ours": ours[test], "theirs": theirs["map"].get(test, "missing")}
                different.append([entry["instance_id"], entry["patch"], test, said])
        for test, said in theirs["map"].items():
            passed = outcomes_of([test], entry["outcomes"])[test] in PASSING
            same = passed == (said in ("PASSED", "XFAIL"))
            counts["log_same"] += same
            if not same:
                only_printed.append([entry["instance_id"], entry["patch"], test, said])
        resolved = all(theirs["fail_to_pass"].values()) and all(
            maintained for _, maintained in theirs["pass_to_pass"].values()
        )
        same = resolved == entry["resolved"]
        counts["verdicts_same" if same else "verdicts_different"] += 1
    total = counts["same"] + counts["different"]
    return {
        "peer": PEER,
        "tests": total,
        "same": counts["same"],
        "percent": round(100 * counts["same"] / total, 3) if total else None,
        "different": different,
        # Everything else in the logs: what was printed by no test of the run is found here.
        "in_whole_logs": {"same": counts["log_same"], "different": only_printed},
        "verdicts_same": counts["verdicts_same"],
        "verdicts_different": counts["verdicts_different"],
    }


def parsing(peer: str, out: Path) -> dict[str, Any]:
    """Medians of 7: a log of 20,000 lines read by both sides' parsers."""
    lines = []
    for number in range(10_000):
        said = "FAILED" if number % 50 == 0 else "PASSED"
        why = " - AssertionError: assert 1 == 2" if said == "FAILED" else ""
        lines.append(
            f"tests/test_{number % 97}.py::TestIt::test_{number}[a-{number}] line of output"
        )
        lines.append(f"{said} tests/test_{number % 97}.py::TestIt::test_{number}[a-{number}]{why}")
    log = out / "20k.log"
    log.write_text("\n".join(lines) + "\n")
    names = ["parse_log_pytest", "parse_log_pytest_v2"]
    ran = subprocess.run(
        [peer, "-c", TIME, str(log), *names], capture_output=True, text=True, check=True
    )
    theirs = json.loads(ran.stdout)
    text = log.read_text()
    found = {}
    for name in names:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            said = PARSERS[name](text)
            times.append(time.perf_counter() - start)
        found[name] = {
            "ours": round(statistics.median(times) * 1000, 1),
            "swebench": round(theirs[name][0], 1),
            "tests": [len(said), theirs[name][1]],
        }
    return found


def summary(found: list[Task], done: list[dict[str, Any]]) -> dict[str, Any]:
    gold = [entry for entry in done if entry["patch"] == "gold"]
    empty = [entry for entry in done if entry["patch"] == "empty"]
    graded = [entry for entry in done if entry["resolved"] is not None]
    return {
        "instances": len(found),
        "gold_resolved": sum(entry["resolved"] is True for entry in gold),
        "empty_unresolved": sum(entry["resolved"] is False for entry in empty),
        "failures": [entry["failure"] for entry in done if entry["resolved"] is None],
        "median_grade_seconds": statistics.median(e["grade_seconds"] for e in graded),
        "median_test_seconds": statistics.median(e["test_seconds"] for e in graded),
        "median_build_seconds": statistics.median(
            entry["build_seconds"] for entry in gold if "build_seconds" in entry
        ),
    }


if __name__ == "__main__":
    main()
