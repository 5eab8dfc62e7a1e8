"""Nothing is left when the program is killed, or forks, or uses many threads."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from swe_env.errors import SandboxError
from swe_env.sandbox.keeper import processes

_VICTIM = """
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from swe_env.sandbox import SandboxSpec, get
box = get(sys.argv[1])(SandboxSpec(base=Path(sys.argv[2])))
twin = box.fork(); kept = box.snapshot()
box.exec(f"sleep {sys.argv[3]} & (setsid sleep {sys.argv[3]} &)")
twin.exec(["sh", "-c", f"sleep {sys.argv[3]} &"])
print("ready", flush=True)
box.exec(f"sleep {sys.argv[3]}")
"""


def _processes(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if word.encode() in line:
            found.append(line.decode("utf-8", "replace"))
    return found


def _mounts() -> list[str]:
    """Mounts as sandboxes make them; other programs of this machine may come and go."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if "lowerdir=.," in line or " /sys " in line or "/sys/d" in line]


def _pids(word: str) -> list[int]:
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists() and path.read_bytes().startswith(f"sleep\0{word}".encode())
    ]


def _cgroups(owner: int) -> list[Path]:
    """The cgroups of the keepers that serve this program."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"\0{owner}\0".encode() in path.read_bytes():
                lines = (path.parent / "cgroup").read_text().splitlines()
                parts = [line.split(":", 2) for line in lines if "/swe-env-" in line]
                found += [Path("/sys/fs/cgroup", names, place[1:]) for _, names, place in parts]
        except OSError:
            continue
    return found


def test_sigkill_of_the_program_leaves_nothing(kind, base, tmp_path):
    seconds = f"9{os.getpid()}"
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    mounts = _mounts()
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, kind, str(base), seconds],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    with victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"ready\n"
        time.sleep(0.05)
        assert _processes(seconds)
        groups = _cgroups(victim.pid)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    deadline = time.monotonic() + 10
    left = ["not looked yet"]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        helpers = _processes(f"\0{victim.pid}\0")
        left = helpers or _processes(seconds) or [str(path) for path in groups if path.exists()]
    assert not left
    assert not list(scratch.iterdir())
    assert _mounts() == mounts


def test_folders_of_a_killed_keeper_are_swept_by_the_next(start, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, alive = tmp_path / "swe-env-999999999-stale", start("process")
    (stale / "testbed").mkdir(parents=True)
    (stale / ".alive").touch()
    start("process")
    assert not stale.exists()
    assert alive.exec("ls README").exit_code == 0


def _wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_processes_of_a_killed_keeper_are_ended_by_the_next(start, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seconds = f"8{os.getpid()}"
    box = start("process")
    box.exec(f"sleep {seconds} & (cd /; env -u HOME setsid sleep {seconds} &); sleep 0.1")
    os.kill(box._keeper.pid, signal.SIGKILL)
    _wait_for(lambda: not Path(f"/proc/{box._keeper.pid}").exists())
    assert _processes(seconds)
    start("process")
    left = [line for line in _processes(seconds) if line.startswith("sleep")]
    assert len(left) < 2  # the one that hid its folder and its home is not found
    for pid in _pids(seconds):
        os.kill(pid, signal.SIGKILL)


def test_what_is_stuck_in_the_group_of_a_killed_keeper_is_ended_by_the_next(start):
    start("local")
    groups = _cgroups(os.getpid())
    if not groups:
        pytest.skip("cgroups cannot be written here")
    gone = subprocess.Popen(["sleep", "600"])  # lives until the group is whole: others sweep too
    stale = groups[0].parent / f"swe-env-{gone.pid}"
    stale.mkdir()
    stuck = subprocess.Popen(["sleep", "600"])
    (stale / "cgroup.procs").write_text(str(stuck.pid))
    gone.kill()
    gone.wait()
    start("local")
    assert stuck.wait(10) == -signal.SIGKILL
    start("local")
    assert not stale.exists()


def test_nothing_is_left_of_episodes_that_are_killed(tmp_path):
    """The small version of the benchmark."""
    program = Path(__file__).parents[3] / "benchmarks" / "survivors.py"
    options = ["--episodes", "26", "--kills", "6", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, program, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert sum(result["killed"].values()) == 6
    assert not any(result["left"].values())
    assert result["leaked_descriptors_in_workers"] == 0


def test_many_threads_start_and_use_sandboxes_at_once(kind, start):
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            box = start(kind)
            for turn in range(5):
                assert box.exec(f"echo {number}-{turn}").output == f"{number}-{turn}\n"
                assert box.exec(["echo", f"{number}"]).output == f"{number}\n"
            box.files.write("who", str(number).encode())
            assert f"+{number}" in box.diff()
            box.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_child_starts_its_own_and_leaves_its_parents(kind, start):
    box = start(kind)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(SandboxError, match="after a fork"):
                box.exec(["true"])
            mine = start(kind)
            good = mine.exec("echo child").output == "child\n"
            mine.close()
            box.close()
            code = 0 if good else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert box.exec("echo parent").output == "parent\n"


def test_a_killed_keeper_is_a_sandbox_error(start):
    box = start("local")
    box.exec("true")
    os.kill(box._keeper.pid, signal.SIGKILL)
    time.sleep(0.1)
    with pytest.raises(SandboxError):
        box.exec(["true"])
    assert start("local").exec("echo on").output == "on\n"


def test_removing_a_tree_touches_nothing_around_it(tmp_path):
    from swe_env.sandbox.keeper.plain import remove

    tree, around = tmp_path / "tree", stat.S_IMODE(tmp_path.stat().st_mode)
    (tree / "locked" / "deep").mkdir(parents=True)
    (tree / "out").symlink_to(tmp_path)
    (tree / "locked").chmod(0o500)
    tmp_path.chmod(0o751)
    for _ in range(2):  # the second time there is nothing to remove
        remove(tree)
        assert not tree.exists()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o751
    tmp_path.chmod(around)


MANY_FILES = """
import os, resource, sys
from pathlib import Path
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
from swe_env.sandbox import SandboxSpec, get
box = get(sys.argv[1])(SandboxSpec(base=Path(sys.argv[2])))
print(box.exec("echo up").output)
box.close()
"""


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1200,
    reason="this user may not open that many files (ulimit -Hn)",
)
def test_a_process_with_more_than_a_thousand_open_files_starts_sandboxes(kind, base):
    command = [sys.executable, "-W", "ignore", "-c", MANY_FILES, kind, str(base)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.stdout.split() == [b"up"], done.stderr


def test_what_one_look_missed_is_killed(monkeypatch):
    """The parent of `sleep` may die, and it be moved, between two lists of children."""
    looks = [processes.descendants, lambda _root: set()]
    monkeypatch.setattr(
        processes, "descendants", lambda root: (looks.pop() if looks[1:] else looks[0])(root)
    )
    with subprocess.Popen(["sh", "-c", "sleep 15 & echo $!; wait"], stdout=-1, text=True) as above:
        pid = int(above.stdout.readline())
        processes.kill_all((), under=above.pid)
        assert not Path(f"/proc/{pid}/exe").exists()
