"""Stand-ins for published images, made of this machine's own programs as none can be pulled."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

PROGRAMS = """
bash sh env cat ls mkdir rm mv cp ln chmod chown find sed grep base64 mktemp mkfifo sleep date tee
head tail wc seq stat touch true echo yes hostname mount mknod chroot unshare
truncate tr cut sort id git setsid nohup xargs printf ps
"""
# What `conda activate testbed` amounts to.
ACTIVATE = """\
conda() { export CONDA_DEFAULT_ENV=$2 PATH=/opt/miniconda3/envs/$2/bin:$PATH; }
"""


def libraries(programs: Iterable[str]) -> set[str]:
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"^\t.*?(/[^\s:]+)", said, re.MULTILINE))


def system(root: Path) -> None:
    """Enough of a system to run bash, git and the usual programs."""
    for name in (
        "usr/bin",
        "usr/lib",
        "etc",
        "tmp",
        "var/tmp",
        "root",
        "var/log",
        "opt",
        "proc",
        "sys",
        "dev",
    ):
        (root / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for name in ("bin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "lib64").symlink_to("usr/lib")
    needed = {
        found for name in PROGRAMS.split() if (found := shutil.which(name, path="/usr/bin:/bin"))
    }
    for path in sorted(needed):
        shutil.copy2(path, root / "usr/bin" / Path(path).name)
    for path in libraries(needed):
        add_library(root, path)
    for path in Path("/usr/lib/locale").glob("C.*"):
        shutil.copytree(path, root / "usr/lib/locale" / path.name)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (root / "etc/shadow").write_text("root:*:1:0:99999:7:::\n")
    (root / "var/log/image.log").write_text("of the image\n")


def add_library(root: Path, path: str) -> None:
    target = root / "usr/lib" / Path(path).name
    if not target.exists():
        shutil.copy2(path, target)


def python(root: Path, place: str) -> None:
    """This interpreter with its standard library and pytest, at `place` of the image."""
    version = f"python3.{sys.version_info.minor}"
    home = root / place
    (home / "bin").mkdir(parents=True)
    executable = Path(sys.base_prefix, "bin", version)
    shutil.copy2(executable, home / "bin/python3")
    (home / "bin/python").symlink_to("python3")
    library = Path(sys.base_prefix, "lib", version)
    skipped = shutil.ignore_patterns(
        "test", "tests", "site-packages", "dist-packages", "*.opt-*.pyc", "idlelib", "tkinter",
        "ensurepip", "lib2to3", "config-*", "*.a", "turtledemo", "pydoc_data",
    )  # fmt: skip
    shutil.copytree(library, home / "lib" / version, ignore=skipped)
    site = home / "lib" / version / "site-packages"
    site.mkdir()
    for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        module = __import__(name)
        folder = Path(str(module.__file__)).parent
        shutil.copytree(folder, site / name)
        if name in ("pytest", "pluggy"):  # they ask for their own versions
            for metadata in folder.parent.glob(f"{name}-*.dist-info"):
                shutil.copytree(metadata, site / metadata.name)
    shutil.copy2(str(__import__("py").__file__), site)
    extensions = (home / "lib" / version / "lib-dynload").glob("*.so")
    for path in libraries([str(executable), *map(str, extensions)]):
        add_library(root, path)


def packed(root: Path) -> bytes:
    """The root as a tar archive, everything owned by root."""

    def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(root, ".", filter=owned)
    return file.getvalue()
