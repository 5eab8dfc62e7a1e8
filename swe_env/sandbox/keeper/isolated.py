"""The keeper's side of `local`: an overlay in an own mount namespace, bubblewrap around it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swe_env.sandbox.keeper import kernel, wire
from swe_env.sandbox.keeper.bubblewrap import INIT, arguments
from swe_env.sandbox.keeper.cgroups import Group
from swe_env.sandbox.keeper.door import open_door
from swe_env.sandbox.keeper.layers import copy_tree
from swe_env.sandbox.keeper.processes import interrupt_all, kill_all

# Seen by this mount namespace only. It exists everywhere and holds nothing that is bound or read.
_PRIVATE = "/sys"
_START_SECONDS = 30.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Isolated:
    """Everything lies in mounts of namespaces that end with their last process.

    Made in two steps, because the first takes most of the time and is the same for many sandboxes:
    namespaces, limits and the system's folders at once, the checkout when `begin` names it.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._rooted = os.geteuid() == 0
        self._group = Group(request["memory"], request["processes"])
        self._bwrap_fd = self._init_fd = self._door_fd = -1
        try:
            self._own_mounts()
            self._mount_private(request["disk"])
            self._start(request)
            self.upper = os.open(f"{_PRIVATE}/data/upper", _FOLDER)
            self.proc = os.open(f"/proc/{self._init}/root/proc", _FOLDER)
            self.door, self._door_fd = open_door(self._enter, self._init_fd)
            self._group.step_out()
        except BaseException:
            self.teardown()
            self.tidy()
            raise

    def begin(self, request: dict[str, Any], fds: list[int]) -> None:
        """Put the workspace into the prepared sandbox; ``fds[0]``, if any, is its upper layer."""
        for path, identity in request["identities"].items():
            info = Path(path).stat()
            if [info.st_dev, info.st_ino] != identity:
                raise OSError(f"{path} is another folder for the sandbox's keeper")
        if fds:
            copy_tree(fds[0], self.upper)
            os.close(fds[0])
        self._mount_overlay(request["base"])
        self.root = os.open(f"{_PRIVATE}/merged", _FOLDER)
        self._attach(request["workdir"], request["binds"], request["hidden"])

    def describe(self) -> tuple[dict[str, Any], list[int]]:
        """What the library is told once the sandbox stands."""
        answer = {
            "door": True,
            "worktree": f"{_PRIVATE}/merged",
            "scratch": f"{_PRIVATE}/scratch",
            "events": self._group.events,
        }
        return answer, [self.root, self.upper, self.proc, self.door.fileno()]

    def watched(self) -> list[int]:
        """The sandbox's first process: with it everything in the sandbox ends."""
        return [self._init_fd]

    def _enter(self) -> None:
        """Join the sandbox's namespaces, without any rights of ours."""
        kernel.setns(self._init_fd, self._flags)
        kernel.drop_rights()

    def kill(self, spared: list[int]) -> None:
        """Kill every process in the pid namespace, apart from `spared` and theirs."""
        self._inside(lambda: kill_all(spared, under=None))

    def interrupt(self, spared: list[int]) -> None:
        """Send SIGINT to every process in the pid namespace, apart from `spared` and theirs."""
        self._inside(lambda: interrupt_all(spared, under=None))

    def _inside(self, act: Callable[[], None]) -> None:
        """Have a process in the sandbox's namespaces do something, and wait for it."""
        done, doing = os.pipe()
        if os.fork() == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self._enter()
                if child := os.fork():
                    os.waitpid(child, 0)
                else:
                    act()
            finally:
                os._exit(0)
        os.close(doing)
        os.read(done, 1)  # ends when the last holder of the other side does
        os.close(done)

    def scratch(self) -> Path:
        """Empty the private folder that commands never see; where it is."""
        folder = Path(_PRIVATE, "scratch")
        shutil.rmtree(folder)
        (folder / "objects").mkdir(parents=True)
        return folder

    def snapshot(self) -> int:
        """The upper layer copied into a file system of its own, which goes with the descriptor."""
        place = f"{_PRIVATE}/snapshot"
        kernel.mount("tmpfs", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0700")
        try:
            target = os.open(place, _FOLDER)
            try:
                copy_tree(self.upper, target)
            except BaseException:
                os.close(target)
                raise
        finally:
            kernel.detach(place)
        return target

    def refill(self, source: int) -> None:
        """Not done in place: an overlay's layers must not change below it."""
        del source
        raise OSError("an isolated workspace is restored by starting another keeper")

    def teardown(self) -> None:
        """End every process; the mounts go with them."""
        # The first process of the pid namespace ends only after all the others have.
        for fd in (self._init_fd, self._bwrap_fd):
            if fd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                wire.ready([fd], _START_SECONDS)
        if self._door_fd >= 0:
            self.door.close()  # or it would wait for the rest of what a killed owner asked
            wire.ready([self._door_fd], _START_SECONDS)  # its end is that of the mounts

    def tidy(self) -> None:
        """Remove the cgroups: to leave one the kernel may take some 10 ms."""
        self._group.leave()

    def _own_mounts(self) -> None:
        """Enter an own mount namespace, as an ordinary user inside an own user namespace."""
        if self._rooted:
            kernel.unshare(kernel.CLONE_NEWNS)
        else:
            uid, gid = os.geteuid(), os.getegid()
            kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)

    def _mount_private(self, disk: int) -> None:
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", _PRIVATE, "tmpfs", flags, "mode=0755")
        for name in ("data", "merged", "scratch", "snapshot", "etc"):
            Path(_PRIVATE, name).mkdir()
        # Empty files cost no blocks, but memory all the same.
        options = f"mode=0755,size={disk},nr_inodes={max(disk // 1024, 1000)}"
        kernel.mount("tmpfs", f"{_PRIVATE}/data", "tmpfs", flags, options)
        for name in ("upper", "work", "tmp", "home", "shm"):
            Path(_PRIVATE, "data", name).mkdir()
        for name in ("tmp", "shm"):
            Path(_PRIVATE, "data", name).chmod(0o1777)

    def _mount_overlay(self, base: str) -> None:
        info = Path(base).stat()
        upper = f"{_PRIVATE}/data/upper"
        Path(upper).chmod(stat.S_IMODE(info.st_mode))
        with contextlib.suppress(PermissionError, OSError):
            os.chown(upper, info.st_uid, info.st_gid)
        # A relative name, because the base's own may hold what the options give a meaning.
        os.chdir(base)
        options = f"lowerdir=.,upperdir={upper},workdir={_PRIVATE}/data/work"
        # Redirects let folders of the base be renamed; their attributes need real root.
        extra = "redirect_dir=on,metacopy=off,index=off" if self._rooted else "userxattr"
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("overlay", f"{_PRIVATE}/merged", "overlay", flags, f"{options},{extra}")
        os.chdir("/")

    def _attach(self, workdir: str, binds: dict[str, str], hidden: list[str]) -> None:
        """Attach what differs from sandbox to sandbox; nothing but its first process runs yet."""
        trees = [(path, kernel.clone_tree(at, read_only=True)) for path, at in binds.items()]
        merged = kernel.clone_tree(f"{_PRIVATE}/merged", read_only=False)
        own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.setns(self._init_fd, kernel.CLONE_NEWNS)
        try:
            for path, tree in trees:
                Path(path).mkdir(parents=True, exist_ok=True)
                kernel.attach(tree, path)
            for path in hidden:
                kernel.mount("tmpfs", path, "tmpfs", flags | kernel.MS_RDONLY, "mode=0755")
            kernel.attach(merged, workdir)
            remount = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY
            kernel.mount("none", "/", "", remount | flags)
        finally:
            kernel.setns(own, kernel.CLONE_NEWNS)
            for fd in (own, merged, *(tree for _, tree in trees)):
                os.close(fd)

    def _start(self, request: dict[str, Any]) -> None:
        """Start bubblewrap and wait until its first process runs inside."""
        info, info_in = os.pipe()
        ready, ready_in = os.pipe()
        blocker, self._hold = os.pipe()
        actions = [
            (os.POSIX_SPAWN_DUP2, blocker, 0),
            (os.POSIX_SPAWN_DUP2, ready_in, 1),
            (os.POSIX_SPAWN_DUP2, ready_in, 2),
            (os.POSIX_SPAWN_DUP2, info_in, 9),
        ]
        argv = [request["bwrap"], *arguments(request, _PRIVATE, info_fd=9), *INIT]
        # Our own SIGCHLD is ignored, which a started program would inherit.
        pid = os.posix_spawn(
            argv[0], argv, {}, file_actions=actions, setsigdef=[signal.SIGCHLD, signal.SIGINT]
        )
        with contextlib.suppress(ProcessLookupError):  # it failed at once; `said` tells why
            self._bwrap_fd = os.pidfd_open(pid)
        for fd in (info_in, ready_in, blocker):
            os.close(fd)
        said = _read_line(ready)
        report = _read_all(info)
        os.close(ready)
        os.close(info)
        if said != b"ready\n" or not report:
            raise OSError(f"bubblewrap: {said.decode('utf-8', 'replace').strip() or 'no answer'}")
        self._init = int(json.loads(report)["child-pid"])
        self._init_fd = os.pidfd_open(self._init)
        self._flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC
        self._flags |= kernel.CLONE_NEWUTS | kernel.CLONE_NEWUSER
        if not request["network"]:
            self._flags |= kernel.CLONE_NEWNET


def _read_line(fd: int) -> bytes:
    data = b""
    while not data.endswith(b"\n") and wire.ready([fd], _START_SECONDS):
        if not (part := os.read(fd, 4096)):
            break
        data += part
    return data


def _read_all(fd: int) -> bytes:
    data = b""
    while wire.ready([fd], 0) and (part := os.read(fd, 4096)):
        data += part
    return data
