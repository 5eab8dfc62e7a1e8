"""The checks that an isolating sandbox must pass beside the others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from swe_env.sandbox.base import Limits
from swe_env.sandbox.conformance.bench import Bench, expect, git, said


def daemons_die_at_a_time_out(bench: Bench) -> None:
    """setsid, double forks, an emptied environment: nothing of the command is left."""
    box = bench.start()
    result = box.exec(
        "env -i setsid sh -c '(sleep 4001 &) ; sleep 4002' & (setsid nohup sleep 4003 &) ; "
        "bash -c 'trap \"\" HUP INT TERM; sleep 4004 & disown; exec sleep 4005' & sleep 60",
        timeout=0.5,
    )
    expect(result.timed_out, "the command times out", result)
    left = box.exec("grep -aslE 'sleep.?400' /proc/[0-9]*/cmdline | grep -vE 'self|/[0-9]+/x'")
    names = box.exec("cat /proc/[0-9]*/comm 2>/dev/null | grep -c sleep")
    expect(names.output.strip() == "0", "every daemon is dead", (left.output, names.output))


def nothing_outlives_close(bench: Bench) -> None:
    """After `close` no process and no mount of the sandbox is left on the machine."""
    tag = f"{os.getpid()}{time.monotonic_ns() % 1000:03d}"
    for last in (False, False, False, False, True):  # other programs of this machine mount too
        mounts = _mounts()
        box = bench.start()
        box.exec(f"sleep 9{tag} & (setsid sleep 9{tag} &) ; sleep 0.2")
        expect(_running(f"9{tag}"), "the processes run before")
        box.close()
        expect(not _running(f"9{tag}"), "no process is left")
        patience = time.monotonic() + 3
        while (left := _mounts() - mounts) and time.monotonic() < patience:
            time.sleep(0.1)
        if not left:
            return
        expect(not last, "no mount is seen outside", sorted(left))


def _mounts() -> set[str]:
    """What is mounted where; without the numbers, as an engine may mount its own folder anew."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split(" ", 2)[2] for line in lines}


def _running(word: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


def there_is_no_network(bench: Bench) -> None:
    """Nothing outside answers, not even this machine's own services."""
    box = bench.start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = box.exec(f"(exec 9<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null", timeout=10)
        expect(result.exit_code != 0, "services of the host cannot be reached", result)
    result = box.exec("cat /proc/net/route | tail -n +2; ls /sys/class/net 2>/dev/null")
    expect("eth" not in result.output, "there is no interface", result)


def host_files_are_hidden(bench: Bench) -> None:
    """No passwords, keys, homes or other folders of this machine."""
    secret = bench.folder / "secret"
    secret.write_text("secret")
    box = bench.start()
    paths = ["/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/ssl/private"]
    paths += [str(secret), str(bench.base), "/boot", "/var/log", "/run/docker.sock", "/sys/kernel"]
    home = Path.home()
    if os.access(home, os.R_OK | os.X_OK):
        paths += [str(item) for item in home.iterdir()]
    for path in paths:
        result = box.exec(["sh", "-c", 'ls -d "$0"/* 2>/dev/null || cat "$0"', path])
        own = bench.own_system and result.output != _seen_here(path)
        expect(result.exit_code != 0 or own, f"{path} is not to be seen", result.output[:200])


def _seen_here(path: str) -> str:
    """What the command above prints on this machine itself."""
    place = Path(path)
    if place.is_dir():
        return "".join(f"{item}\n" for item in sorted(place.glob("[!.]*")))
    return place.read_text("utf-8", "replace") if place.is_file() else ""


def the_system_is_read_only(bench: Bench) -> None:
    """Only the workspace, /tmp, /dev/shm and the home folder can be written, all private.

    Where each sandbox has a system of its own, so is that.
    """
    box = bench.start()
    other = bench.start() if bench.own_system else None
    for path in ("/usr/x", "/etc/x", "/etc/passwd", "/x", "/usr/bin/env", "/dev/x", "/proc/sys/x"):
        here = Path(path).read_bytes() if Path(path).is_file() else None
        result = box.exec(["sh", "-c", 'echo x >> "$0"', path])
        if other is None or path.startswith("/proc"):
            expect(result.exit_code != 0, f"{path} cannot be written", result)
        else:
            tail = other.exec(["sh", "-c", 'tail -c 3 "$0"', path]).output
            expect(not tail.endswith("\nx\n"), f"writing {path} is not seen by others", tail)
        now = Path(path).read_bytes() if Path(path).is_file() else None
        expect(now == here, f"{path} of this machine is unchanged")
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):
        result = box.exec(["sh", "-c", ': >> "$0"', path])  # opened, nothing is written
        expect(result.exit_code != 0, "kernel settings cannot be written", result)
    said(
        box.exec("for f in /tmp/x /dev/shm/x ~/x /var/tmp/y; do echo 1 > $f && cat $f; done"),
        "1\n1\n1\n1",
    )
    said(bench.start().exec("ls /tmp /dev/shm ~ | grep -c x"), "0", 1)


def rights_are_gone(bench: Bench) -> None:
    """No capabilities, no way to get them back, no mounts, no devices, no foreign processes."""
    box = bench.start()
    for command in ("grep -E 'CapPrm|CapEff|CapBnd|CapAmb' /proc/self/status",):
        for result in (box.exec(command), box.exec(["sh", "-c", command])):
            rows = result.output.split()[1::2]
            expect(rows and not any(int(row, 16) for row in rows), "no capabilities", result)
    said(box.exec("grep NoNewPrivs /proc/self/status | cut -f2"), "1")
    for command in (
        "mount -t tmpfs none /tmp",
        "mknod d b 8 0",
        "chroot / true",
        "unshare --user --map-root-user true",
        "unshare --mount true",
        "kill -9 1 && sleep 0.2 && ! kill -0 1",
        "hostname other",
    ):
        result = box.exec(f"({command}) 2>/dev/null")
        expect(result.exit_code != 0, f"{command!r} must fail", result)
    result = box.exec("ls -d /proc/[0-9]* | wc -l")
    expect(int(result.output) < 12, "only the sandbox's own processes are seen", result)


def the_base_is_unchanged(bench: Bench) -> None:
    """Whatever a command does to the workspace, the shared base stays, for others to see."""
    other = bench.start()
    box = bench.start()
    box.exec("rm -rf .git pkg; echo changed > README; chmod 777 run.sh; truncate -s 0 data.bin")
    box.files.write("data.bin", b"x")
    expect(git(bench.base, "status", "--porcelain") == b"", "the base is unchanged")
    said(other.exec("cat README"), "read me")


def limits_hold(bench: Bench) -> None:
    """Disk and process limits strike with a message, and the sandbox goes on."""
    box = bench.start(limits=Limits(disk=4 << 20, processes=40))
    result = box.exec("head -c 20000000 /dev/zero > big")
    expect(result.exit_code != 0, "the disk limit strikes", result)
    expect(result.limit == "disk" and "disk" in result.output, "the disk limit is told", result)
    box.exec("rm big")
    hungry = bench.start(limits=Limits(memory=64 << 20))
    result = hungry.exec("head -c 400000000 /dev/zero | tail -n 1 > /dev/null; exit $?")
    expect(result.exit_code != 0, "the memory limit strikes", result)
    expect(
        result.limit == "memory" and "memory" in result.output, "the memory limit is told", result
    )
    said(hungry.exec("echo on"), "on")
    bomb = box.exec("f() { f | f & }; f; sleep 1; false", timeout=3)
    expect(bomb.limit == "processes" or bomb.timed_out, "a fork bomb is stopped", bomb)
    began = time.monotonic()
    box.close()
    expect(time.monotonic() - began < 5, "a fork bomb does not survive close")


def killing_everything_is_survived(bench: Bench) -> None:
    """`kill -9 -1` costs the shell, not the sandbox."""
    box = bench.start()
    box.exec("echo kept > kept; kill -9 -1")
    said(box.exec("cat kept"), "kept")


ALL: dict[str, Callable[[Bench], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        daemons_die_at_a_time_out,
        nothing_outlives_close,
        there_is_no_network,
        host_files_are_hidden,
        the_system_is_read_only,
        rights_are_gone,
        the_base_is_unchanged,
        limits_hold,
        killing_everything_is_survived,
    )
}
"""Checks by name."""
