from __future__ import annotations

import contextlib
import gc
import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from swe_env.errors import ToolError
from swe_env.sandbox import beneath
from swe_env.sandbox.files import DirFiles


@pytest.fixture(params=["openat2", "walk"])
def files(request, tmp_path, monkeypatch):
    monkeypatch.setattr(beneath, "SUPPORTED", beneath.SUPPORTED and request.param == "openat2")
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"secret")
    fd = os.open(root, os.O_RDONLY)
    made = DirFiles(fd, "/testbed")
    made.path = root
    os.close(fd)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("link", "path"),
    [
        ("../secret", "l"),
        ("..", "l/secret"),
        ("a/../../secret", "l"),
        ("/etc", "l/passwd"),
        ("/testbed/../secret", "l"),
        ("l", "l"),
    ],
)
def test_links_to_outside_are_refused(files, link, path):
    (files.path / "l").symlink_to(link)
    for call in (files.read, files.stat, lambda name: files.write(name, b"x")):
        with pytest.raises(ToolError):
            call(path)
    assert (files.path / ".." / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("link", ["a/file", "/testbed/a/file", "a/b/../file", "./a//file"])
def test_links_inside_are_followed(files, link):
    (files.path / "l").symlink_to(link)
    assert files.read("l") == b"inside"
    files.write("l", b"changed")
    assert (files.path / "a" / "file").read_bytes() == b"changed"
    assert (files.path / "l").is_symlink()


@pytest.mark.parametrize("path", ["a/../a/file", "./a/file", "/testbed/a/file", "a//file"])
def test_ways_to_name_a_file(files, path):
    assert files.read(path) == b"inside"


def test_a_race_cannot_lead_outside(files, tmp_path):
    """A folder that turns into a link to outside, again and again, never yields the outside."""
    inside, outside = files.path / "swap", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            inside.mkdir()
            (inside / "file").write_bytes(b"fine")
            (inside / "file").unlink()
            inside.rmdir()
            inside.symlink_to(outside)
            inside.unlink()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with contextlib.suppress(ToolError):
                assert files.read("swap/file") in (b"", b"fine")
    finally:
        stop.set()
        thread.join()


def test_a_write_keeps_mode_and_replaces_in_one_step(files):
    target = files.path / "a" / "file"
    target.chmod(0o751)
    with target.open("rb") as reader:
        files.write("a/file", b"new")
        assert reader.read() == b"inside"
    assert stat.S_IMODE(target.stat().st_mode) == 0o751
    assert sorted(path.name for path in (files.path / "a").iterdir()) == ["b", "file"]


def test_hard_links_stay_together(files):
    os.link(files.path / "a" / "file", files.path / "other")
    files.write("other", b"both")
    assert files.read("a/file") == b"both"


def test_nothing_blocks_and_nothing_leaks(files):
    os.mkfifo(files.path / "fifo")
    gc.collect()  # what earlier tests left open is closed before, not in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("fifo", "a", "missing", "../secret"):
        for call in (files.read, lambda name: files.write(name, b"x"), files.list):
            if (path, call) == ("a", files.list):
                continue
            if path == "missing" and call not in (files.read, files.list):
                continue
            with pytest.raises(ToolError):
                call(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_messages_are_one_sentence_without_host_paths(files):
    for path in ("missing/x", "a", "/etc/passwd", "../x", "a/file/x"):
        with pytest.raises(ToolError) as caught:
            files.read(path)
        text = str(caught.value)
        assert text.endswith(".")
        assert "\n" not in text
        assert str(files.path) not in text


def test_view_is_quick(files):
    (files.path / "long.py").write_text("".join(f"line_{i} = {i}\n" for i in range(2000)))
    times = []
    for _ in range(50):
        start = time.perf_counter()
        files.read("long.py")
        times.append(time.perf_counter() - start)
    assert sorted(times)[25] < 0.0005


def test_a_walk_survives_any_depth_and_what_vanishes_meanwhile(files):
    """The agent chooses how deep its folders go, and its processes go on while a tool walks."""
    fd = os.open(files.path / "a", os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    (files.path / "b").mkdir()
    gc.collect()  # what earlier tests left open is closed before, not in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    walked = []
    for path, _ in files.walk():
        if path == "b":
            (files.path / "b").rmdir()
        walked.append(path)
    assert "a/file" in walked
    assert "/".join(["a", *"d" * 150]) in walked
    assert walked[-1] == "b"
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    subprocess.run(["rm", "-rf", files.path / "a"], check=True)
