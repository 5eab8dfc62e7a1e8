"""Nothing is left when the program is killed, or forks, or uses many threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from swe_env.errors import SandboxError

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


def _leftovers(tmp: Path) -> list[str]:
    folders = [str(path) for path in tmp.glob("swe-env-*")]
    groups = [path.parent for path in Path("/sys/fs/cgroup").glob("*/swe-env-*/cgroup.procs")]
    dead = [path for path in groups if not Path("/proc", path.name[len("swe-env-") :]).exists()]
    return folders + [str(path) for path in dead]


def test_sigkill_of_the_program_leaves_nothing(kind, base, tmp_path):
    seconds = f"9{os.getpid()}"
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    mounts = Path("/proc/self/mountinfo").read_text()
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
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    deadline = time.monotonic() + 10
    left = ["not looked yet"]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        helpers = _processes(f"\0{victim.pid}\0")
        left = helpers or _processes(seconds) or _leftovers(scratch)
    assert not left
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_folders_of_a_killed_keeper_are_swept_by_the_next(start, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, alive = tmp_path / "swe-env-999999999-stale", start("process")
    (stale / "testbed").mkdir(parents=True)
    (stale / ".alive").touch()
    start("process")
    assert not stale.exists()
    assert alive.exec("ls README").exit_code == 0


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
