"""The `local` sandbox as an ordinary user, its limits one by one, and what no namespace hides."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import wrapt

import swe_env
from swe_env.sandbox import Limits, get
from swe_env.sandbox.local import _count

pytestmark = pytest.mark.skipif(bool(get("local").available()), reason="no namespaces here")
NOBODY = 65534
CHECK = """
from swe_env.sandbox import check_sandbox, get
print(len(check_sandbox(get("local"))))
"""


@pytest.fixture
def readable():
    """What an ordinary user needs of this project, where that user may read it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in (swe_env, wrapt):
            shutil.copytree(Path(package.__file__).parent, folder / package.__name__)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield folder


def _as_user(program: str, folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "TMPDIR": f"{folder}/tmp"}
    return subprocess.run(
        [program, "-W", "ignore", "-c", script],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd=folder,
        env={**env, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )


def _python(folder: Path) -> str:
    """A Python of at least 3.11 that an ordinary user may run."""
    script = "import sys; assert sys.version_info >= (3, 11)"
    for program in filter(None, (sys.executable, shutil.which("python3", path="/usr/bin"))):
        try:
            if _as_user(program, folder, script).returncode == 0:
                return program
        except OSError:
            continue
    pytest.skip("no Python here that an ordinary user may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="all the other tests run as an ordinary user")
def test_an_ordinary_user_gets_the_same_sandbox(readable):
    done = _as_user(_python(readable), readable, CHECK)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


@pytest.mark.parametrize("place", [".", "/tmp", "/dev/shm", "~", "/var/tmp"])
def test_the_disk_limit_counts_every_place_that_can_be_written(start, place):
    box = start("local", limits=Limits(disk=4 << 20))
    result = box.exec(f"cat /dev/zero > {place}/big")
    assert result.limit == "disk"
    assert "disk or file size limit was reached" in result.output


def test_the_number_of_files_is_limited(start):
    box = start("local", limits=Limits(disk=1 << 20))
    result = box.exec("i=0; while : > f$i; do i=$((i + 1)); [ $i -lt 3000 ] || break; done; false")
    assert result.limit == "disk"
    assert box.exec("rm f*; echo on").output == "on\n"


V1 = b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
V2 = b"low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\noom_group_kill 0\n"


FILL = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(500)
    except OSError:
        time.sleep(0.01)
"""
FULL = f"/usr/bin/python3 -c '{FILL}' & while (( SECONDS < 2 )); do :; done"


@pytest.fixture
def crowded(start):
    """A sandbox that has as many processes as it may."""
    return start("local", limits=Limits(processes=40))


def test_without_room_for_a_process_the_sandbox_is_looked_after(crowded):
    left = crowded.exec(f"{FULL}; while :; do :; done", timeout=4, keep_running=True)
    assert left.running
    crowded.files.write("README", b"changed\n")
    assert "+changed" in crowded.diff()
    assert not crowded.resume(interrupt=True, timeout=10).timed_out


def test_without_room_for_a_new_shell_what_is_running_is_ended(crowded):
    crowded.exec(f"{FULL}; exit")
    time.sleep(0.1)
    result = crowded.exec("echo on")
    assert (result.exit_code, result.limit) == (0, "processes")
    assert "on" in result.output.splitlines()
    assert "no room for a new shell" in result.output


@pytest.mark.parametrize(("text", "count"), [(V1, 3), (V2, 3), (b"max 7\n", 7), (b"", 0)])
def test_both_versions_of_cgroups_tell_how_often_a_limit_struck(tmp_path, text, count):
    (tmp_path / "events").write_bytes(text)
    fd = os.open(tmp_path / "events", os.O_RDONLY)
    assert _count(fd) == count
    os.close(fd)


KEYS = """
import ctypes, os, sys
from pathlib import Path
from swe_env.sandbox import SandboxSpec, get
libc = ctypes.CDLL(None)
if libc.syscall(250, 1, None) < 0 or libc.syscall(248, b"user", b"swe", b"secret", 6, -3) < 0:
    sys.exit("no keys")
find = 'import ctypes; print(ctypes.CDLL(None).syscall(249, b"user", b"swe", None, 0) > 0)'
print(os.popen(f"{sys.executable} -c '{find}'").read().strip())
binds = {path: Path(path) for path in {sys.prefix, sys.base_prefix}}
with get("local")(SandboxSpec(base=Path(sys.argv[1]), binds=binds)) as box:
    print(box.exec([sys.executable, "-c", find]).output.strip())
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the system call's number is another")
def test_the_users_kernel_keys_are_out_of_reach(base):
    done = subprocess.run([sys.executable, "-c", KEYS, base], capture_output=True, text=True)
    if done.stderr.strip() == "no keys":
        pytest.skip("this kernel keeps no keys")
    assert done.stdout.split() == ["True", "False"], done.stderr
