"""bubblewrap's arguments: what of this machine every sandbox sees, which is little."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
ETC_FILES = (
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "mime.types",
    "protocols",
    "services",
    "os-release",
    "debian_version",
)
_KERNEL = ("sys", "sysrq-trigger", "irq", "bus", "fs")
ETC_FOLDERS = ("alternatives", "ssl/certs")
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
INIT = ("--", "/bin/bash", "--norc", "--noprofile", "-c", "echo ready; read _")
"""The first process: bash, because it reaps whatever is orphaned onto it while it waits."""


def arguments(request: dict[str, Any], private: str, *, info_fd: int) -> list[str]:
    """Arguments for bubblewrap, up to the command.

    Args:
        request: what the sandbox is prepared for (`workdir`, `network`).
        private: the keeper's private mount, with ``etc`` and ``data``.
        info_fd: where bubblewrap writes its child's pid.
    """
    options = ["--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc"]
    options += ["--unshare-uts", "--hostname", "sandbox", "--uid", "0", "--gid", "0"]
    if not request["network"]:
        options.append("--unshare-net")
    options += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--as-pid-1"]
    options += ["--info-fd", str(info_fd), "--clearenv"]
    options += ["--ro-bind", "/usr", "/usr"]
    for name in SYSTEM:
        if Path("/", name).is_symlink():
            options += ["--symlink", str(Path("/", name).readlink()), f"/{name}"]
        else:
            options += ["--ro-bind-try", f"/{name}", f"/{name}"]
    options += _etc(f"{private}/etc", network=request["network"])
    options += ["--dir", "/var", "--symlink", "../tmp", "/var/tmp", "--dir", "/run"]
    options += ["--proc", "/proc"]
    # bubblewrap covers these only where they look writable; the kernel lets uid 0 write some that
    # do not, with no capability at all.
    for name in _KERNEL:
        options += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    options += ["--dev", "/dev", "--bind", f"{private}/data/shm", "/dev/shm"]
    options += ["--bind", f"{private}/data/tmp", "/tmp", "--bind", f"{private}/data/home", "/root"]
    # The root itself becomes read-only when the keeper has attached the rest.
    options += ["--dir", request["workdir"]]
    return [*options, "--remount-ro", "/dev", "--chdir", "/"]


def _etc(folder: str, *, network: bool) -> list[str]:
    """Fill `folder` with an /etc of a few harmless files; the options that bind it."""
    for name, text in ETC.items():
        Path(folder, name).write_text(text)
    for name in (*ETC_FILES, "resolv.conf") if network else ETC_FILES:
        if Path("/etc", name).is_file():
            shutil.copyfile(f"/etc/{name}", f"{folder}/{name}")
    options = ["--ro-bind", folder, "/etc"]
    for name in ETC_FOLDERS:
        if Path("/etc", name).is_dir():
            Path(folder, name).mkdir(parents=True)
            options += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    return options
