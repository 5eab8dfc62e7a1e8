"""A shell that a command made useless is replaced at once, and the model is told."""

from __future__ import annotations

import time

import pytest

from swe_env.sandbox import SandboxSpec

BREAKING = [
    "enable -n eval",
    "enable -n printf",
    "enable -n builtin",
    "builtin() { :; }",
    "alias builtin='true '",
    'alias builtin="echo \'"',
    "set -n",
    "exec >/dev/null 2>&1",
    "set -e; exec >/dev/null",
    "exec 2>errors",
    "exec 2>&-",
]


@pytest.mark.parametrize("keep_running", [False, True])
@pytest.mark.parametrize("command", BREAKING)
def test_a_shell_made_useless_is_replaced_at_once(start, kind, command, keep_running):
    box = start(kind)
    box.exec("cd pkg; sleep 300 & echo $! > ../early")
    began = time.monotonic()
    result = box.exec(f"echo on; x=1; {command}", timeout=20, keep_running=keep_running)
    assert time.monotonic() - began < 8
    assert result.output.startswith("on\n")
    assert f"so a new shell starts in {box.workdir}/pkg; variables" in result.output
    assert not result.running
    after = box.exec("pwd; echo ${x:-gone}; echo err >&2; kill -0 $(cat ../early) && echo alive")
    assert after.output == f"{box.workdir}/pkg\ngone\nerr\nalive\n"
    assert after.exit_code == 0


def test_the_exit_code_and_folder_of_a_command_that_redirected_are_its_own(start, kind):
    box = start(kind)
    result = box.exec("cd pkg; exec >/dev/null; (exit 7)")
    assert result.exit_code == 7
    assert f"new shell starts in {box.workdir}/pkg" in result.output


def test_a_command_that_ends_between_two_looks_is_not_taken_for_a_lost_shell(start, kind):
    """Its report then waits in the pipe while nothing is left of the script."""
    box = start(kind)
    for wait in range(12):
        box.exec("sleep 0.1", timeout=0.02, keep_running=True)
        time.sleep(0.15 if wait % 2 else 0.08)
        result = box.resume(timeout=5)
        assert (result.exit_code, result.output, result.running) == (0, "", False)


SOUND = [
    "echo a; exec 2>&1",
    "set -x; echo a 2>&1; set +x",
    "trap 'true' DEBUG; echo a",
    "exec 3>file 4<file 99>&- 97>&-; echo a",
    "echo a; alias ls='ls -l'; printf() { :; }; echo() { :; }; cd() { :; }",
    "sleep 0.8; echo a; x=1",
]


@pytest.mark.parametrize("command", SOUND)
def test_a_sound_shell_is_kept(start, kind, command):
    box = start(kind)
    box.exec("kept=yes")
    assert "new shell" not in box.exec(command, timeout=20).output
    assert box.exec("set +x; builtin echo $kept 2>/dev/null").output.endswith("yes\n")


def test_a_command_inherits_nothing_of_the_helpers(start, kind):
    box = start(kind)
    box.exec("sleep 60", timeout=0.2, keep_running=True)  # its own pipes must not be seen either
    listed = box.exec(["ls", "/proc/self/fd"], channel=True, env={"LC_ALL": "C"}).output.split()
    beyond = [number for number in map(int, listed) if number > 2]
    assert len(beyond) == 2, listed  # the channel, and the folder that `ls` reads


@pytest.mark.parametrize("argument", ["a\0b", "half \ud83d"])
def test_arguments_that_no_program_can_be_given_cost_only_their_command(start, kind, argument):
    box = start(kind)
    assert box.exec(["echo", argument]).exit_code == 126
    assert box.exec(["echo", "on"]).output == "on\n"
    assert box.exec("echo on").output == "on\n"


@pytest.mark.xdist_group("mounts")
def test_in_a_container_it_is_the_same(docker, base):
    with docker(SandboxSpec(base=base)) as box:
        box.exec("cd pkg; sleep 300 & echo $! > ../early")
        for command in BREAKING:
            result = box.exec(f"echo on; x=1; {command}", timeout=20)
            assert result.output.startswith("on\n"), command
            assert f"so a new shell starts in {box.workdir}/pkg; variables" in result.output
            assert result.exit_code == (0 if "exec" in command and "&-" not in command else -1)
            after = box.exec("pwd; echo ${x:-gone}; echo err >&2; kill -0 $(cat ../early); echo $?")
            assert after.output == f"{box.workdir}/pkg\ngone\nerr\n0\n", command
        began = time.monotonic()
        result = box.exec("set -n", timeout=1.5, keep_running=True)
        assert "new shell" in (result if not result.running else box.resume(timeout=9)).output
        assert time.monotonic() - began < 8
        box.exec("kept=yes")
        for command in SOUND:
            assert "new shell" not in box.exec(command, timeout=20).output, command
            assert box.exec("set +x; builtin echo $kept 2>/dev/null").output.endswith("yes\n")
        big = "x" * 200_000
        assert box.exec(f"sleep 3; : {big}; builtin echo done", timeout=20).output == "done\n"
