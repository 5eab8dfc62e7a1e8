"""The checks that every kind of sandbox must pass, isolating or not."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from swe_env.errors import SandboxError
from swe_env.sandbox.base import Limits, Sandbox
from swe_env.sandbox.conformance.bench import Bench, expect, git, refused, said


def shell_runs_commands(bench: Bench) -> None:
    """Exit code, both outputs in order, workspace as folder, UTF-8 with replacement."""
    box = bench.start()
    said(box.exec("echo a; echo b >&2; echo c; (exit 7)"), "a\nb\nc", 7)
    said(box.exec("pwd"), box.workdir)
    expect(box.workdir not in box.private, "the workspace is none of the private paths")
    said(box.exec("nosuchcommand 2>/dev/null"), "", 127)
    said(box.exec("printf 'a\\377b'"), "a\ufffdb")
    said(box.exec("cat <<'X'\nit's $HOME \"q\" \\n\nX\n"), 'it\'s $HOME "q" \\n')
    result = box.exec("if")
    expect(result.exit_code and result.output, "a syntax error has a message and a code", result)
    said(box.exec("cat", stdin=b"fed"), "fed")
    said(box.exec("cat"), "")


def shell_keeps_its_state(bench: Bench) -> None:
    """Folder, variables, functions and aliases last; `break` and `return` do not end it."""
    box = bench.start()
    box.exec("cd pkg; x=3; export Y=4; f() { echo f$1; }; declare -a arr=(1 2)")
    said(box.exec("pwd; echo $x ${arr[1]}; f 5; sh -c 'echo $Y'"), f"{box.workdir}/pkg\n3 2\nf5\n4")
    box.exec("break; continue 3; return 5")
    said(box.exec("echo $x"), "3")


def shell_is_replaced(bench: Bench) -> None:
    """`exit`, `exec` and a killed shell: the result stands, a note says so, the next one works."""
    box = bench.start()
    box.exec("cd pkg")
    for command, code in (("echo bye; exit 3", 3), ("exec true", 0), ("kill -9 $$", 137)):
        result = box.exec(command)
        expect(result.exit_code == code, f"{command!r} ends with {code}", result)
        expect("new shell" in result.output, f"{command!r} is told in the output", result)
        said(box.exec("pwd"), f"{box.workdir}/pkg")
    result = box.exec("exec sh -c 'echo in; exit 4'")
    expect(result.exit_code == 4 and "in" in result.output, "exec's own output and code", result)


def output_cannot_end_a_command(bench: Bench) -> None:
    """Whatever a command prints, to any descriptor it can name, its result is its own."""
    box = bench.start()
    result = box.exec("printf '0 0 /\\0\\0'; echo 0 >&2; (exit 9)")
    expect(result.exit_code == 9, "a report on the output is only output", result)
    result = box.exec(
        "for i in $(seq 3 99); do eval \"printf '1 0 /x\\\\0' >&$i\"; done 2>/dev/null; false"
    )
    expect(result.exit_code == 1, "a forged report is ignored", result)
    said(box.exec("pwd"), box.workdir)


def lists_run_as_their_own_process(bench: Bench) -> None:
    """No shell in between, at the root, in a clean environment, apart from the shell's state."""
    box = bench.start(env={"WHERE": "{workdir}/x"})
    box.exec("cd pkg; export LEAK=1; WHERE=changed")
    said(box.exec(["echo", "$HOME", "a b", ""]), "$HOME a b")
    said(
        box.exec(["sh", "-c", "pwd; echo ${LEAK:-clean} $WHERE"]),
        f"{box.workdir}\nclean {box.workdir}/x",
    )
    said(box.exec(["sh", "-c", "echo $A; exit 9"], env={"A": "1"}), "1", 9)
    said(box.exec(["cat"], stdin=b"x" * 200_000 + b"\n"), "x" * 200_000)
    result = box.exec(["nosuchcommand"])
    expect(result.exit_code == 127 and "not found" in result.output, "an unknown command", result)
    result = box.exec(["sh", "-c", "kill -9 $$"])
    expect(result.exit_code == 137, "a killed command ends with 128 + signal", result)


def the_channel_is_apart(bench: Bench) -> None:
    """What goes to SWE_ENV_CHANNEL comes back whole, and nothing else does."""
    box = bench.start()
    script = "echo out; echo in >&$SWE_ENV_CHANNEL; head -c 300000 /dev/zero >&$SWE_ENV_CHANNEL"
    result = box.exec(["sh", "-c", script], channel=True)
    expect(result.channel == b"in\n" + bytes(300_000), "the channel's bytes", len(result.channel))
    said(result, "out")
    said(box.exec(["sh", "-c", "echo ${SWE_ENV_CHANNEL:-none}"]), "none")
    late = box.exec(["sh", "-c", "echo x >&$SWE_ENV_CHANNEL; sleep 30"], channel=True, timeout=0.3)
    expect(late.timed_out and late.channel == b"x\n", "the channel survives a time-out", late)


def time_outs_kill(bench: Bench) -> None:
    """Foreground, background and stubborn processes go; earlier background processes stay."""
    box = bench.start()
    box.exec(_BACKGROUND + "cd pkg")
    late = (
        "(trap '' TERM INT; while :; do date +%s%N > ../late; sleep 0.05; done) & echo on; sleep 60"
    )
    began = time.monotonic()
    result = box.exec(late, timeout=0.6)
    expect(time.monotonic() - began < 5, "a time-out is kept", time.monotonic() - began)
    expect(result.timed_out and result.exit_code == -1, "a time-out is told", result)
    expect(result.output.startswith("on\n"), "output before the time-out is kept", result.output)
    expect(not _changes(box, "late"), "what the command left in the background is killed")
    expect(_lives(box, "early"), "earlier background processes survive")
    said(box.exec("pwd"), f"{box.workdir}/pkg")
    result = box.exec(["sh", "-c", "sleep 60 & wait"], timeout=0.3)
    expect(result.timed_out and result.exit_code == -1, "a list times out too", result)


_BACKGROUND = (
    "(while :; do date +%s%N > early; sleep 0.05; done) & until [ -s early ]; do sleep 0.05; done; "
)


def _lives(box: Sandbox, path: str) -> bool:
    """Whether what writes to the file does so again; on a busy machine that can take seconds."""
    return any(_changes(box, path) for _ in range(30))


def _changes(box: Sandbox, path: str) -> bool:
    before = box.files.read(path)
    time.sleep(0.3)
    return box.files.read(path) != before


def running_commands_go_on(bench: Bench) -> None:
    """Left running at the time-out, then polled, fed, interrupted, killed; the shell's state stays.

    Nothing fed is left for the next command, nor is anything but what was fed ever read.
    """
    box = bench.start()
    box.exec("cd pkg; x=1; sleep 300 &")
    _leave(box, "echo on; read a; read b; echo $a-$b; x=2; (exit 5)")
    refused(lambda: box.exec("echo two"), "another command meanwhile")
    said(box.exec(["echo", "beside"]), "beside")
    result = box.resume(stdin=b"one\n", timeout=0.1)
    expect(result.running and result.output == "", "polling tells only what is new", result)
    result = box.resume(stdin=b"two\nmore than it reads\n", timeout=20)
    expect(not result.running, "it ends", result)
    said(result, "one-two", 5)
    refused(box.resume, "resuming nothing")
    said(box.exec("pwd; echo $x; cat"), f"{box.workdir}/pkg\n2")
    expect(box.exec("cat", **_BRIEF).running, "what was not read is gone, and so is no script")
    said(box.resume(interrupt=True, timeout=20), "", 130)
    big = b"x" * 300_000 + b"\n"
    said(box.exec("wc -c", stdin=big, keep_running=True, timeout=20), "300001")
    _leave(box, "cat; echo on; read a; sleep 60", stdin=b"all\n", first="all\n")
    refused(lambda: box.resume(stdin=b"more\n"), "feeding one whose input has ended")
    said(box.resume(interrupt=True, timeout=20), "", 130)


def interrupts_reach_the_foreground(bench: Bench) -> None:
    """ctrl+c ends programs and loops and can be caught; what runs in the background is spared."""
    box = bench.start()
    box.exec(_BACKGROUND + "x=1")
    catching = "sh -c 'trap \"echo caught; exit 7\" INT; echo on; while :; do sleep 0.05; done'"
    _leave(box, catching)
    said(box.resume(interrupt=True, timeout=20), "caught", 7)
    for command in ("while :; do sleep 0.1; done", "while :; do :; done", "read y"):
        _leave(box, f"echo on; {command}; echo over")
        said(box.resume(interrupt=True, timeout=20), "over")
    expect(_lives(box, "early"), "earlier background processes survive")
    said(box.exec("echo $x"), "1")
    _leave(box, "trap '' INT; echo on; while :; do date +%s%N > deaf; sleep 0.05; done")
    expect(box.resume(interrupt=True, timeout=0.1).running, "one that is deaf to it goes on")
    result = box.resume(kill=True)
    expect(result.timed_out and result.exit_code == -1 and not result.running, "killed", result)
    expect(not _changes(box, "deaf"), "it is really killed")
    expect(_lives(box, "early"), "earlier background processes survive a kill")
    said(box.exec("echo on"), "on")


def _leave(box: Sandbox, command: str, stdin: bytes = b"", first: str = "") -> None:
    """Leave a command running once it has said "on", after `first`."""
    result = box.exec(command, stdin=stdin, **_BRIEF)
    seen = result.output
    for _ in range(100):
        if not result.running or "on\n" in seen:
            break
        result = box.resume(timeout=0.1)
        seen += result.output
    left = result.running and seen == f"{first}on\n"
    expect(left, f"{command!r} is left running", (seen, result))
    expect(result.exit_code == -1 and not result.timed_out, "which is no time-out", result)


_BRIEF: dict[str, Any] = {"keep_running": True, "timeout": 0.3}


def background_processes_do_not_block(bench: Bench) -> None:
    """A command ends when it ends, whoever still holds its output."""
    box = bench.start()
    for command in ("sleep 60 & echo on", ["sh", "-c", "sleep 60 & echo on"]):
        began = time.monotonic()
        said(box.exec(command, timeout=20), "on")
        expect(time.monotonic() - began < 5, f"{command!r} returns at once")


def output_is_capped(bench: Bench) -> None:
    """Head and tail are kept with the number of characters left out."""
    box = bench.start()
    result = box.exec("echo first; seq 100000; echo last", output_limit=1000)
    text = result.output
    expect(len(text) < 1200 and result.limit == "output", "the cap holds", len(text))
    expect(text.startswith("first") and text.endswith("last\n"), "head and tail stay", text)
    expect(str(588895 + 11 - 1000) in text, "the number left out is told", text[480:560])
    expect(box.exec("yes | head -c 200000000 | tail -c 2").output == "y\n", "a flood is no problem")


def files_read_and_write(bench: Bench) -> None:
    """Round trips, modes kept, parents made, listings sorted, `.git` not walked."""
    box = bench.start()
    files = box.files
    data = bytes(range(256)) * 10
    files.write("new/deep/file.bin", data)
    expect(
        files.read(f"{box.workdir}/new/deep/file.bin") == data, "absolute paths in the workspace"
    )
    files.write("run.sh", b"#!/bin/sh\necho two\n")
    said(box.exec("./run.sh && echo x >> README && cat README"), "two\nread me\nx")
    expect(files.read("README") == b"read me\nx\n", "files see what commands wrote")
    expect(files.read("link").startswith(b"def f"), "links inside are followed")
    files.write("link", b"through\n")
    expect(files.read("pkg/mod.py") == b"through\n", "writing through a link keeps the link")
    names = [entry.name for entry in files.list()]
    expect(names == sorted(names) and ".git" in names, "list is sorted and complete", names)
    walked = [path for path, _ in files.walk()]
    expect("new/deep/file.bin" in walked, "walk descends", walked)
    expect(not any(path.startswith(".git/") for path in walked), "walk leaves .git out")
    entry = files.stat("pkg")
    expect(entry is not None and entry.kind == "dir", "stat tells a folder", entry)
    expect(files.stat("missing/x") is None, "stat of nothing is None")
    files.remove("README")
    expect(files.stat("README") is None, "remove removes")


def files_stay_inside(bench: Bench) -> None:
    """No way out of the workspace, and nothing that blocks."""
    box = bench.start()
    secret = bench.folder / "secret"
    secret.write_text("secret")
    box.exec(
        f"ln -s {secret} out; ln -s .. up; ln -s /etc etc; ln -s loop loop; mkfifo fifo; "
        f"ln -s {box.workdir}/pkg/mod.py absolute; ln -s ../../../../../..{secret} climb; "
        "truncate -s 100M huge; ln -s /dev/zero zero; ln -s /proc/self/root/etc/passwd magic"
    )
    bad = ["../secret", "pkg/../../secret", str(secret), "/etc/passwd", "out", "up/secret", "climb"]
    bad += ["etc/passwd", "loop", "fifo", "pkg", "missing", "huge", "zero", "magic", "a\0b", ""]
    for path in bad:
        refused(partial(box.files.read, path), f"reading {path!r}")
    for path in ("../new", "out", "up/new", "etc/new", str(secret), "fifo", "pkg", "zero", "climb"):
        refused(partial(box.files.write, path, b"x"), f"writing {path!r}")
    for path in ("../secret", "up/secret", str(secret), "pkg", "missing"):
        refused(partial(box.files.remove, path), f"removing {path!r}")
    refused(lambda: list(box.files.walk("up")), "walking a link to outside")
    refused(lambda: box.files.read("data.bin", limit=255), "reading more than the limit")
    expect(box.files.read("absolute").startswith(b"def f"), "an absolute link inside is followed")
    expect(secret.read_text() == "secret", "the file outside is untouched")


def diff_tells_everything(bench: Bench) -> None:
    """Applied to the base, the diff gives the workspace: bytes, modes, links."""
    box = bench.start()
    expect(box.diff() == "", "a fresh workspace has no diff", box.diff())
    box.exec(
        "echo 'x = 1' >> pkg/mod.py; git mv README READ.md; chmod -x run.sh; rm link; "
        "ln -s run.sh link2; printf '\\0\\1\\2' >> data.bin; printf 'no newline' > added; "
        "mkdir -p a/b; echo deep > 'a/b/sp ace é'; echo log > x.log; "
        "printf 'd\\351\\n' >> latin.txt; "
        ": > empty; printf 'crlf\\r\\n' > crlf; chmod +x added"
    )
    patch = box.diff()
    expect(patch == box.diff(), "the diff is the same every time")
    expect("x.log" not in patch, "ignored files stay out")
    other = bench.folder / "applied"
    git(bench.folder, "clone", "-q", str(bench.base), str(other))
    git(other, "apply", "--index", "-", stdin=patch.encode())
    for path, entry in box.files.walk():
        ours = other / path
        if entry.kind == "file" and path != "x.log":
            expect(ours.read_bytes() == box.files.read(path), f"{path} has its bytes")
    expect(not os.access(other / "README", os.F_OK), "deleted files are gone")
    expect((other / "link2").readlink() == Path("run.sh"), "links are links")
    expect(not (other / "run.sh").stat().st_mode & stat.S_IXUSR, "modes are kept")
    expect((other / "added").stat().st_mode & stat.S_IXUSR, "modes of new files are kept")


def diff_sees_into_repositories(bench: Bench) -> None:
    """A repository made inside the workspace, with commits or without, hides nothing."""
    box = bench.start()
    box.exec("git init -q pkg; echo 'x = 1' >> pkg/mod.py; echo new > pkg/new")
    honest = box.diff()
    expect("+x = 1" in honest and "+new" in honest, "an empty repository hides nothing", honest)
    box.exec("cd pkg; git add -A; git -c user.name=a -c user.email=b commit -qm mine; rm mod.py")
    patch = box.diff()
    expect("-def f" in patch and "+new" in patch, "a repository hides nothing", patch)


def diff_ignores_the_agents_git(bench: Bench) -> None:
    """Commits, configuration, hooks, filters and a lost .git change nothing."""
    box = bench.start()
    box.exec("echo 'x = 1' >> pkg/mod.py; echo new > new.py")
    honest = box.diff()
    marker = bench.folder / "marker"
    box.exec(
        f"git config core.fsmonitor 'touch {marker}; false'; git config core.worktree /tmp; "
        f"git config diff.external 'touch {marker}'; git config core.bare true; "
        f"git config filter.f.clean 'touch {marker}; echo filtered'; "
        f"git config core.excludesFile {box.workdir}/.git/ex; echo '*.py' > .git/ex; "
        "echo '*.py' > .git/info/exclude; mkdir -p .git/hooks; "
        f"printf '#!/bin/sh\\ntouch {marker}\\n' > .git/hooks/pre-commit; chmod +x .git/hooks/*; "
        "echo '*.py filter=f diff=f' > .git/info/attributes"
    )
    marker.unlink(missing_ok=True)  # the agent's own git may run what it configured
    expect(box.diff() == honest, "the agent's configuration has no influence", box.diff())
    expect(not marker.exists(), "nothing the agent configured was run")
    box.exec("git config core.bare false; git config --unset core.worktree")
    box.exec("git -c user.name=a -c user.email=b commit --no-verify -qam mine; git gc -q")
    expect(box.diff() == honest, "the agent's commits have no influence", box.diff())
    box.exec("rm -rf .git; echo 'gitdir: /nowhere' > .git")
    expect(box.diff() == honest, "without .git the diff is the same", box.diff())
    expect(git(bench.base, "status", "--porcelain") == b"", "the base is unchanged")


def snapshots_restore(bench: Bench) -> None:
    """Every restore gives the same files, again and after further changes; the base stays."""
    box = bench.start()
    box.exec("rm -r pkg; mkdir pkg; echo one > pkg/other; rm README; chmod 600 run.sh; cd pkg")
    before = box.diff()
    kept = box.snapshot()
    for command in ("cd ..; rm -rf -- * .gitignore", "echo two > pkg/other; echo back > README"):
        box.exec(command)
        box.restore(kept)
        expect(box.diff() == before, f"restore undoes {command!r}", box.diff())
        said(
            box.exec(f"cd {box.workdir}; ls pkg; stat -c %a run.sh; ls README 2>&1 | wc -l"),
            "other\n600\n1",
        )
        expect(box.files.read("pkg/other") == b"one\n", "files see the restored state")
    kept.discard()
    kept.discard()
    fresh = bench.start()
    expect(fresh.diff() == "", "a new sandbox starts from the base", fresh.diff())


def forks_are_independent(bench: Bench) -> None:
    """A fork starts with the same files and folder; neither sees what the other does."""
    box = bench.start()
    box.exec("rm -r pkg; mkdir pkg; echo one > pkg/a; cd pkg")
    kept = box.snapshot()
    twin = box.fork()
    bench.opened.append(twin)
    expect(twin.diff() == box.diff(), "a fork has the same files")
    said(twin.exec("pwd; cat a"), f"{twin.workdir}/pkg\none")
    twin.exec("echo two > a; touch b")
    said(box.exec("cat a; ls"), "one\na")
    twin.restore(kept)
    expect(twin.diff() == box.diff(), "a fork can be put back to its parent's snapshot")
    box.close()
    said(twin.exec(f"cat {twin.workdir}/pkg/a"), "one")
    kept.discard()


def closing_ends_everything(bench: Bench) -> None:
    """Twice is once; no descriptor, thread or process is left; use after it is refused."""
    bench.start().close()
    fds, threads = _descriptors(), threading.active_count()
    box = bench.start()
    box.exec("sleep 300 & (setsid sleep 300 &)")
    box.exec("sleep 9", timeout=0.1)
    kept, twin = box.snapshot(), box.fork()
    twin.exec("sleep 300 &")
    for _ in range(2):
        kept.discard()
        twin.close()
        box.close()
    expect(_descriptors() == fds, "descriptors are closed")
    expect(threading.active_count() == threads, "no thread is left")
    try:
        box.exec("true")
    except SandboxError:
        pass
    else:
        raise AssertionError("a closed sandbox must raise SandboxError")


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def limits_strike(bench: Bench) -> None:
    """A file over the size limit stops its command, not the sandbox."""
    box = bench.start(limits=Limits(file_size=1 << 20))
    result = box.exec("head -c 5000000 /dev/zero > big")
    expect(result.exit_code != 0, "the file size limit strikes", result)
    expect(result.limit == "disk" and "size limit" in result.output, "and is told", result)
    said(box.exec("stat -c %s big"), str(1 << 20))


def wrong_specs_are_refused(bench: Bench) -> None:
    """A missing base is one clear sentence."""
    from swe_env.sandbox.base import SandboxSpec

    try:
        bench.opened.append(bench.factory(SandboxSpec(base=Path("/no/such/folder"))))
    except SandboxError as error:
        expect("/no/such/folder" in str(error), "the sentence names the folder", str(error))
    else:
        raise AssertionError("a missing base must raise SandboxError")


ALL: dict[str, Callable[[Bench], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        shell_runs_commands,
        shell_keeps_its_state,
        shell_is_replaced,
        output_cannot_end_a_command,
        lists_run_as_their_own_process,
        the_channel_is_apart,
        time_outs_kill,
        running_commands_go_on,
        interrupts_reach_the_foreground,
        background_processes_do_not_block,
        output_is_capped,
        files_read_and_write,
        files_stay_inside,
        diff_tells_everything,
        diff_sees_into_repositories,
        diff_ignores_the_agents_git,
        snapshots_restore,
        forks_are_independent,
        closing_ends_everything,
        limits_strike,
        wrong_specs_are_refused,
    )
}
"""Checks by name."""
