"""The docker sandbox on a real engine: promises, limits, what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import swe_env  # noqa: F401 - registers SWE-v0
from swe_env.errors import ConfigError, SandboxError
from swe_env.sandbox import Limits, SandboxSpec, check_sandbox, get
from swe_env.sandbox.conformance import isolation, promises
from swe_env.sandbox.docker import DockerFactory, owner, served
from swe_env.sandbox.docker.engine import connect

pytestmark = pytest.mark.xdist_group("mounts")


@pytest.fixture
def begin(docker, base):
    opened = []

    def start(factory: DockerFactory = docker, **settings: object):
        opened.append(factory(SandboxSpec(base=base, **settings)))
        return opened[-1]

    yield start
    for box in opened:
        box.close()


def test_every_promise_is_kept(docker):
    passed = check_sandbox(docker, own_system=True)
    assert len(passed) == len(promises.ALL) + len(isolation.ALL)


def test_files_without_python_in_the_image(docker, monkeypatch):
    def unserved(*_: object) -> None:
        raise served.Unserved

    monkeypatch.setattr(served.Server, "__init__", unserved)
    names = ("files read and write", "files stay inside")
    monkeypatch.setattr(promises, "ALL", {name: promises.ALL[name] for name in names})
    assert len(check_sandbox(docker, isolated=False)) == 2


def test_a_killed_file_server_is_started_again(begin):
    box = begin()
    assert box.files.read("README") == b"read me\n"
    box.exec("kill -9 -1")
    assert box.files.read("README") == b"read me\n"


def test_another_folder_in_the_workspaces_place(begin):
    box = begin()
    box.exec("rm -rf /testbed; mkdir /testbed; echo new > /testbed/README")
    assert box.files.read("README") == b"new\n"
    assert {"a/README", "a/run.sh"} <= set(box.diff().split())
    box.exec("cd /; rm -rf /testbed; mkdir /tmp/other; ln -s /tmp/other /testbed")
    assert "deleted file mode 100644\nindex d9b4012" in box.diff()


def test_binds_are_read_only_and_hidden_folders_empty(begin, tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "tool").write_text("#!/bin/sh\necho bound $WHERE\n")
    (tmp_path / "extra" / "tool").chmod(0o755)
    env = {"PATH": "{/opt/deep/env}:/usr/bin:/bin", "WHERE": "{workdir}"}
    binds = {"/opt/deep/env": tmp_path / "extra"}
    box = begin(binds=binds, env=env, hidden=("/usr/share", "/nonexistent"))
    assert box.exec("tool").output == box.exec(["tool"]).output == "bound /testbed\n"
    for folder in ("/opt/deep/env", "/usr/share", "/usr"):
        assert box.exec(f"touch {folder}/x").exit_code != 0
    assert box.exec("ls /usr/share | wc -l").output == "0\n"
    with pytest.raises(SandboxError, match="/no/such/folder, to be seen at /opt/x, is not there"):
        begin(binds={"/opt/x": Path("/no/such/folder")})


def test_memory_and_disk_limits_are_told(begin):
    box = begin(limits=Limits(memory=96 << 20, disk=16 << 20))
    result = box.exec("tail /dev/zero")
    assert (result.limit, "memory limit" in result.output) == ("memory", True)
    assert box.exec("echo on").output == "on\n"
    filling = "for i in $(seq 99); do head -c 1000000 /dev/zero > f$i; sleep 0.02; done; sleep 30"
    result = box.exec(filling, timeout=25)
    assert (result.limit, result.exit_code, result.timed_out) == ("disk", -1, False)
    assert "killed" in result.output


def test_a_user_without_root(docker, begin):
    box = begin(DockerFactory(user="1234:1234"))
    assert box.exec("id -u; touch /etc/x 2>&1 | grep -c denied; echo x >> README").exit_code == 0
    box.files.write("new/file", b"made\n")
    assert box.exec("stat -c %u README new/file").output == "1234\n1234\n"
    assert "+made" in box.diff()


def test_wrong_settings_are_told(monkeypatch):
    with pytest.raises(ConfigError, match="user is a number"):
        DockerFactory(user="root")
    monkeypatch.setenv("SWE_ENV_DOCKER_POOL", "many")
    with pytest.raises(ConfigError, match="SWE_ENV_DOCKER_POOL"):
        DockerFactory()


def test_without_an_engine_one_sentence_says_what_to_do(base, monkeypatch, tmp_path):
    for host, words in (
        (f"unix://{tmp_path}/none.sock", "No container engine answers"),
        ("tcp://127.0.0.1:1", "No container engine answers"),
        ("ssh://somewhere", "unix:// and tcp:// only"),
    ):
        monkeypatch.setenv("DOCKER_HOST", host)
        assert words in get("docker").available()
        with pytest.raises(SandboxError, match=words):
            get("docker")(SandboxSpec(base=base))


def test_without_the_sdk_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/sdk.sock")
    monkeypatch.setitem(sys.modules, "docker", None)
    assert get("docker").available() == (
        "The docker sandbox needs the docker SDK: pip install 'swe-env[docker]'."
    )


def test_an_image_that_cannot_be_had_is_one_sentence(docker, base):
    with pytest.raises(SandboxError, match=r"The image no/such:1 is not on this machine") as error:
        docker(SandboxSpec(base=base, image="no/such:1"))
    assert "\n" not in str(error.value)


def test_containers_are_kept_ready(docker, base):
    pooled = DockerFactory(pool=1)
    first = pooled(SandboxSpec(base=base))
    deadline = time.monotonic() + 20
    while not pooled.pool._ready and time.monotonic() < deadline:
        time.sleep(0.02)
    waiting = pooled.pool._ready[0][1].id
    second = pooled(SandboxSpec(base=base))
    assert second._container.id == waiting
    assert second.exec("cat README").output == "read me\n"
    other = pooled(SandboxSpec(base=base, env={"A": "1"}))
    assert other.exec("echo $A").output == "1\n"
    for box in (first, second, other):
        box.close()
    pooled.pool.close()
    assert not _own_containers(os.getpid())


_VICTIM = """
import sys
from pathlib import Path
from swe_env.sandbox import SandboxSpec, get
box = get("docker")(SandboxSpec(base=Path(sys.argv[1])))
twin = box.fork(); kept = box.snapshot()
box.exec(f"sleep {sys.argv[2]} & (setsid sleep {sys.argv[2]} &)")
twin.exec(["sh", "-c", f"sleep {sys.argv[2]} &"])
print("ready", flush=True)
box.exec(f"sleep {sys.argv[2]}")
"""


def _own_containers(pid: int) -> list[str]:
    found = connect().api.containers(all=True, filters={"label": owner.OWNER})
    return [row["Id"] for row in found if f":{pid}:" in row["Labels"][owner.OWNER]]


def _own_images(pid: int) -> list[str]:
    found = connect().api.images(filters={"label": owner.OWNER})
    return [row["Id"] for row in found if f":{pid}:" in row["Labels"][owner.OWNER]]


def test_sigkill_of_the_program_leaves_nothing(docker, base):
    seconds = f"8{os.getpid()}"
    command = [sys.executable, "-c", _VICTIM, str(base), seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"ready\n"
        assert len(_own_containers(victim.pid)) == 2
        victim.kill()
    deadline = time.monotonic() + 15
    while _own_containers(victim.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    # The containers' lifeline was cut with the program; nobody had to look for them.
    assert not _own_containers(victim.pid)
    assert not any(
        seconds.encode() in path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists()
    )
    assert _own_images(victim.pid)
    owner.reap(connect())
    assert not _own_images(victim.pid)


def test_what_runs_is_not_reaped(docker, begin):
    box = begin()
    owner.reap(connect())
    assert box.exec("echo on").output == "on\n"
    assert not owner.abandoned("")
    assert not owner.abandoned("another-machine:12:34")
    assert owner.abandoned(owner._place() + ":999999999:1")


def test_many_threads_start_and_use_sandboxes_at_once(docker, begin):
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            box = begin()
            for turn in range(3):
                assert box.exec(f"echo {number}-{turn}").output == f"{number}-{turn}\n"
            assert box.exec(["echo", f"{number}"]).output == f"{number}\n"
            box.files.write("who", str(number).encode())
            assert f"+{number}" in box.diff()
            box.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_child_starts_its_own_and_leaves_its_parents(docker, begin):
    box = begin()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(SandboxError, match="after a fork"):
                box.exec(["true"])
            mine = begin()
            code = 0 if mine.exec("echo child").output == "child\n" else 2
            mine.close()
            box.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert box.exec("echo parent").output == "parent\n"


def test_a_container_that_is_gone_is_a_sandbox_error(docker, begin):
    box = begin()
    box.exec("true")
    owner.remove(box._engine, box._container.id)
    for command in ("true", ["true"]):
        with pytest.raises(SandboxError):
            box.exec(command)


@pytest.mark.parametrize("tools", ["default", "r2e"])
def test_check_env_is_clean(docker, shop_task, tools):
    """An episode in containers, graded in one, and Gymnasium's own check."""
    made = gym.make("SWE-v0", tasks=[shop_task], sandbox="docker", tools=tools, render_mode="ansi")
    try:
        check_env(made.unwrapped)
        made.reset(seed=1)
        fix = "sed -i 's/100 + discount/100 - discount/' shop.py"
        bash = {"tool": "bash", "arguments": {"command": fix}}
        if tools == "r2e":
            bash = {"tool": "execute_bash", "arguments": {"command": fix}}
        assert made.step(bash)[0]["exit_code"] == 0
        *_, info = made.step({"tool": "finish" if tools == "r2e" else "submit", "arguments": {}})
        assert info["report"].resolved, info
    finally:
        made.close()
