"""A disk that takes no more: one sentence, and what was there before stays."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import swe_env
from swe_env.cache import build_once, cache_dir
from swe_env.disk import refusal, sync_folder, write_atomically
from swe_env.errors import InfrastructureError, TaskError
from swe_env.repos.commit import commit_all
from swe_env.repos.git import must
from swe_env.tasks import dump, load

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses larger files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tasks_that_cannot_be_written_leave_the_old_file(shop_task, tmp_path):
    path = tmp_path / "tasks.jsonl"
    dump([shop_task], path)
    with files_of_at_most(100), pytest.raises(OSError, match=r"tasks\.jsonl") as caught:
        dump([replace(shop_task, instance_id="new")], path)
    assert caught.value.filename == str(path)
    assert [task.instance_id for task in load(str(path))] == ["shop-1"]
    assert [file.name for file in tmp_path.iterdir()] == ["tasks.jsonl"]


def test_a_file_that_cannot_be_written_whole_is_the_old_one(tmp_path):
    path = tmp_path / "settings.json"
    write_atomically(path, b"old")
    with files_of_at_most(100), pytest.raises(OSError, match=r"settings\.json'$"):
        write_atomically(path, b"new" * 100)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_on_the_disk_before_their_name(tmp_path, monkeypatch):
    real, synced = os.fsync, []

    def fsync(descriptor):
        at = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((at.name, (tmp_path / "a.json").exists()))
        if at == tmp_path:
            raise OSError(errno.EINVAL, "Invalid argument")  # as some network file systems do
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a.json", b"{}")
    assert synced == [(".a.json.part", False), (tmp_path.name, True)]
    (tmp_path / "folder").mkdir()
    sync_folder(tmp_path)
    assert synced[2:] == [("a.json", True), (tmp_path.name, True)]


def test_the_command_line_says_it_in_one_sentence(source, tmp_path):
    limited = (
        "import resource; from swe_env.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); main()"
    )
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-B", "-c", limited, "tasks", "make", source, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"swe: {out} could not be written (File too large): free space")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_full_cache_is_an_infrastructure_failure_of_reset(shop_task, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(shop_task.source.location, folder)
    (folder / "big.txt").write_text("x" * 5000)
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "cache"))
    task = replace(shop_task, source=replace(shop_task.source, location=str(folder)))
    env = swe_env.SWEEnv([task], sandbox="process")
    with files_of_at_most(4000), pytest.raises(InfrastructureError) as caught:
        env.reset(seed=0)
    said = str(caught.value)
    assert f"could not be put into the cache {tmp_path}/cache/" in said
    assert "(File too large): free space" in said
    assert "point SWE_ENV_CACHE at another folder" in said
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()
                and not path.name.endswith(".lock")]  # fmt: skip


def test_a_full_disk_is_heard_from_git_too(tmp_path):
    def build(folder):
        (folder / "file").write_text("text")
        commit_all(folder)
        must(folder, "archive", "-o", "/dev/full", "HEAD")

    with pytest.raises(InfrastructureError, match=r"made could .* \(No space left on device\)"):
        build_once(tmp_path / "made", build)


def test_other_failures_of_a_build_are_their_own(tmp_path):
    def build(folder):
        raise TaskError("There is no such commit.")

    with pytest.raises(TaskError, match="no such commit"):
        build_once(tmp_path / "made", build)
    with pytest.raises(FileNotFoundError):
        build_once(tmp_path / "made", lambda folder: (folder / "a" / "b").write_text("x"))
    assert refusal(PermissionError(13, "Permission denied")) == ""


def test_a_cache_that_cannot_be_made_says_which_setting(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "file"))
    with pytest.raises(InfrastructureError, match="point SWE_ENV_CACHE at a folder that can"):
        cache_dir("bases")
