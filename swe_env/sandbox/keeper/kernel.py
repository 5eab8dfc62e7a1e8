"""The system calls that Python 3.11 has no function for, through ctypes."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MNT_DETACH = 2

_OPEN_TREE = 428  # these three have the same number on every architecture
_MOVE_MOUNT = 429
_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 0x1
_EMPTY_PATH = 0x1000
_RECURSIVE = 0x8000
_MOVE_MOUNT_FROM_DESCRIPTOR = 0x4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x1, 0x2, 0x4

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` for new ones."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join namespaces: of a namespace file, or all in `flags` of a process's pidfd (Linux 5.8)."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Attach a file system, or change one that is attached."""
    _check(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode(),
            ctypes.c_ulong(flags),
            os.fsencode(options),
        ),
        f"mount {kind or 'point'} at {target}",
    )


def detach(target: str) -> None:
    """Take a mount out of the tree; it lives on while a descriptor holds it."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def clone_tree(folder: str, *, read_only: bool) -> int:
    """A detached copy of the mount tree at `folder`, as a descriptor (Linux 5.12)."""
    flags = _OPEN_TREE_CLONE | _RECURSIVE | os.O_CLOEXEC
    tree: int = _libc.syscall(_OPEN_TREE, -100, os.fsencode(folder), flags)
    _check(tree, f"open_tree {folder}")
    attributes = _ATTR_NOSUID | _ATTR_NODEV | (_ATTR_RDONLY if read_only else 0)
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _EMPTY_PATH | _RECURSIVE
    done = _libc.syscall(_MOUNT_SETATTR, tree, b"", flags, wanted, ctypes.sizeof(wanted))
    try:
        _check(done, f"mount_setattr {folder}")
    except OSError:
        os.close(tree)
        raise
    return tree


def attach(tree: int, target: str) -> None:
    """Put a detached mount tree where this process sees the folder `target`."""
    flags = _MOVE_MOUNT_FROM_DESCRIPTOR
    done = _libc.syscall(_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), flags)
    _check(done, f"move_mount to {target}")


def adopt_orphans() -> None:
    """Become the parent of whatever is orphaned below this process."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def forget_keys() -> None:
    """Leave the user's session keyring, which no namespace hides, for an empty one."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        _libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None)  # fails where there are no keys


def drop_rights() -> None:
    """Give up every capability for good and hide this process's memory from its peers."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
