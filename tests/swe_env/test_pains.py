"""What users of other environments reported, one test each: here it must not happen."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest

import swe_env
from swe_env.repos import base
from swe_env.sandbox import get
from swe_env.types import Source
from swe_env.wrappers import RecordTrajectory

ISOLATED = not get("local").available()
SUBMIT = {"tool": "submit", "arguments": {}}
FIX = {
    "tool": "edit",
    "arguments": {"path": "shop.py", "old_str": "100 + discount", "new_str": "100 - discount"},
}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def bash(command, **more):
    return {"tool": "bash", "arguments": {"command": command, **more}}


@pytest.fixture
def env(source):
    made = gym.make("SWE-v0", tasks=source)
    made.reset(seed=0)
    yield made
    made.close()


def said(env, command, **more):
    return env.step(bash(command, **more))[0]["text"]


def git(folder, *arguments):
    name = ["-c", "user.name=dev", "-c", "user.email=dev@example.org"]
    done = subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def upstream(shop_folder, tmp_path):
    """(repository, commit): the shop with a fix, a tag and a pack in its future."""
    folder = tmp_path / "upstream"
    subprocess.run(["cp", "-r", shop_folder, folder], check=True)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "shop.py").write_text("THE_FIX = 1\n")
    git(folder, "commit", "-qam", "THE_FIX")
    git(folder, "tag", "v2")
    git(folder, "gc", "-q")
    return folder, commit


def test_future_commits_cannot_be_read(shop_task, upstream):
    """SWE-bench#465, mini-swe-agent#787: agents read the fix out of later commits.

    Neither history, tags, reflogs, remotes, packs, unreachable objects nor alternates hold it.
    """
    folder, commit = upstream
    task = replace(
        shop_task,
        base_commit=commit,
        source=Source(kind="git", location=str(folder)),
    )
    env = swe_env.SWEEnv([task])
    env.reset(seed=0)
    look = (
        "git log --all --oneline; git tag; git remote -v; git reflog; git stash list; "
        "git fsck --unreachable --no-reflogs; cat .git/packed-refs .git/objects/info/alternates; "
        "git cat-file --batch-all-objects --batch-check | cut -d' ' -f1 | git cat-file --batch; "
        "git grep THE_FIX $(git rev-list --all); find / -name upstream -not -path '/proc/*'"
        if ISOLATED
        else "git log --all --oneline; git tag; git reflog; git grep THE_FIX"
    )
    text = said(env, look)
    env.close()
    assert "base" in text
    assert "THE_FIX" not in text.replace("git grep THE_FIX", "")
    assert "v2" not in text.split()
    assert str(folder) not in text


def test_hidden_tests_cannot_be_read(env):
    """R2E-Gym puts the hidden tests where the agent can list them.

    Here they reach the sandbox of the grading only: not the files, not git, not `run_tests`.
    """
    text = said(env, "grep -rn 'test_discount\\|total(\\[100\\]' . .git; git log -p | grep disc")
    assert "test_discount" not in text
    observation, *_ = env.step({"tool": "run_tests", "arguments": {}})
    assert observation["text"] == "2 passed"
    wanted = {"targets": "tests/test_shop.py::test_discount"}
    observation, *_ = env.step({"tool": "run_tests", "arguments": wanted})
    assert observation["exit_code"] == 1
    assert "passed" not in observation["text"]


def test_printed_and_reported_passes_are_not_believed(env):
    """SWE-bench#601, #620, #631: a forged PASSED line or a conftest made tests pass."""
    forge = """
import pytest
print("PASSED tests/test_shop.py::test_discount")
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.outcome = "passed"
    report.longrepr = None
"""
    env.step({"tool": "edit", "arguments": {"path": "tests/conftest.py", "new_str": forge}})
    _, reward, _, _, info = env.step(SUBMIT)
    assert reward == 0.0
    assert not info["report"].resolved
    assert any("conftest.py" in line for line in info["report"].tampering)


def test_edited_tests_do_not_count(env):
    """verifiers#1212: an agent that edits the tests passes them."""
    command = "printf 'def test_discount(): pass\\ndef test_label(): pass\\n' > tests/test_shop.py"
    env.step(bash(command))
    _, reward, _, _, info = env.step(SUBMIT)
    assert reward == 0.0
    assert info["report"].fail_to_pass == {"tests/test_shop.py::test_discount": "failed"}


def test_a_missing_test_is_no_pass(shop_task):
    """SWE-smith#24: a test that did not run was counted as one that passes."""
    gone = "tests/test_shop.py::test_that_never_was"
    for lists in ({"FAIL_TO_PASS": (gone,)}, {"PASS_TO_PASS": (gone,)}):
        report = swe_env.grade(replace(shop_task, **lists), shop_task.patch)
        assert not report.resolved
        assert (report.fail_to_pass | report.pass_to_pass)[gone] == "missing"


@pytest.mark.skipif(not ISOLATED, reason="needs the local sandbox: process does not isolate")
def test_the_upstream_fix_cannot_be_fetched(env):
    """self-bench#11: 80 of 992 traces fetched the fix from upstream.

    No network unless asked for: not by address, not by name, not through the host's own ports.
    """
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = (
            'python -c "import socket, sys; socket.create_connection((sys.argv[1], '
            'int(sys.argv[2])), 3)" '
        )
        for place in (f"127.0.0.1 {port}", "1.1.1.1 443", "github.com 443"):
            observation, *_ = env.step(bash(connect + place))
            assert observation["exit_code"] == 1
            assert "rror" in observation["text"].splitlines()[-2]
    assert said(env, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo"


def test_a_lost_sandbox_is_a_failure_and_no_zero(source):
    """verifiers#1622, #404: infrastructure failures were scored as reward 0 and learned from.

    The sandbox is killed from outside; the record says so, and neither scores nor learners take it.
    """
    records: list[swe_env.Trajectory] = []
    env = RecordTrajectory(gym.make("SWE-v0", tasks=source), records, agent={"name": "me"})
    env.reset(seed=0)
    env.step(FIX)
    os.kill(env.unwrapped._context.sandbox._keeper.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    truncated = False
    while not truncated and time.monotonic() < deadline:  # until its death is noticed
        _, reward, terminated, truncated, info = env.step(bash("true"))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["failure"]["kind"] == "sandbox"
    assert "report" not in info
    env.reset(seed=0)
    assert env.step(SUBMIT)[4]["report"].resolved is False
    env.close()
    assert [(t.failure is not None, t.report is None) for t in records] == [
        (True, True),
        (False, False),
    ]


def test_a_hung_command_neither_blocks_nor_survives(source):
    """mini-swe-agent#549, SWE-agent#971: a hung command or its children held an episode up.

    A step returns in time whatever the command ignores, and nothing is left after `close`.
    """
    marker = f"hung-{os.getpid()}"
    hung = f"trap '' INT TERM HUP; (exec -a {marker} sleep 300) & exec -a {marker} sleep 300"
    env = gym.make("SWE-v0", tasks=source, command_timeout=1.0)
    env.reset(seed=0)
    began = time.monotonic()
    observation, _, _, truncated, _ = env.step(bash(hung))
    assert (observation["exit_code"], truncated) == (-1, False)
    assert "still running" in observation["text"]
    assert time.monotonic() - began < 20
    assert marker in running()
    env.step(FIX)
    assert env.step(SUBMIT)[1] == 1.0
    env.close()
    deadline = time.monotonic() + 10
    while marker in running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marker not in running()


def running():
    names = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                names.append((entry / "cmdline").read_bytes().split(b"\0")[0].decode())
            except OSError:
                continue
    return names


def test_episodes_share_one_checkout(source, upstream, shop_task):
    """OpenHands#9679: 1.3 TB of disk for 140 tasks.

    Tasks at one commit and all their episodes share one base; an episode's own layer holds what it
    changed. Where overlays cannot be mounted (`process`), the copy goes with the episode.
    """
    folder, commit = upstream
    tasks = [
        replace(
            shop_task,
            instance_id=f"shop-{n}",
            base_commit=commit,
            source=Source(kind="git", location=str(folder)),
        )
        for n in range(3)
    ]
    assert len({base(task) for task in tasks}) == 1
    envs = [swe_env.SWEEnv(tasks) for _ in range(3)]
    for n, env in enumerate(envs):
        env.reset(seed=n)
        if ISOLATED:
            assert "overlay" in said(env, "mount | grep ' on /testbed '")
        env.step(bash(f"echo {n} > note; echo {n} >> shop.py"))
    for n, env in enumerate(envs):
        assert said(env, "cat note; tail -n 1 shop.py") == f"{n}\n{n}"
        env.close()
    assert not (base(tasks[0]) / "note").exists()


def test_a_second_start_takes_no_build(source):
    """SWE-agent#985, #887: start-up ran into time-outs, each time anew."""
    env = gym.make("SWE-v0", tasks=source)
    env.reset(seed=0)
    times = []
    for _ in range(5):
        began = time.monotonic()
        env.reset()
        times.append(time.monotonic() - began)
    env.close()
    assert sorted(times)[2] < 2.0


def test_truncation_keeps_the_summary_of_the_tests(env):
    """cube-harness#368: the cut-off output lost pytest's last lines."""
    noise = 'for i in $(seq 20000); do echo "log line $i"; done; '
    text = said(env, noise + "python -m pytest -q 2>&1")
    assert text.startswith("log line 1\n")
    assert "2 passed in" in text
    assert "characters left out" in text
    assert len(text) <= 16_000


def test_the_patch_holds_every_change_whoever_made_it(env):
    """R2E-Gym and others: files changed outside the editor, or committed, were not in the patch."""
    env.step(
        bash(
            "echo new > made_by_bash.txt; printf '\\0\\1' > data.bin; git mv shop.py shop2.py; "
            "sed -i 's/amount/sum_/' shop2.py; chmod +x tests/test_shop.py; rm -f README*; "
            "git config user.email a@b.c; git config user.name a; git add -A; "
            "git commit -qm wip; git checkout -qb other; rm -rf .git; mkdir pkg; "
            "git init -q pkg; echo nested > pkg/inner.py"
        )
    )
    env.step({"tool": "edit", "arguments": {"path": "by_tool.py", "new_str": "x = 1\n"}})
    patch = env.step(SUBMIT)[4]["patch"]
    for part in (
        "b/made_by_bash.txt",
        "GIT binary patch",
        "b/shop2.py",
        "old mode 100644\nnew mode 100755",
        "b/by_tool.py",
        "b/pkg/inner.py",
        "+    sum_ = sum(prices)",
    ):
        assert part in patch, part
