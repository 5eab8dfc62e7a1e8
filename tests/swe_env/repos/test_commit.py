"""Repositories of one commit written without git, held against what git makes and reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from swe_env.errors import TaskError
from swe_env.repos import commit
from swe_env.repos.commit import commit_all, head
from swe_env.repos.git import environment


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment(), check=True, capture_output=True
    )
    return done.stdout.decode("utf-8", "surrogateescape")


@pytest.fixture
def tree(tmp_path):
    """Every kind of file and name whose place or mode git is particular about."""
    folder = tmp_path / "tree"
    contents = {
        "a.b": b"x",
        "a/inner": b"x",
        "a-b": b"y\n" * 3000,
        "a0": b"",
        "deep/er/and/deeper.py": b"x = 1\n",
        "deep/er.py": b"\r\n",
        "de/x": b"1",
        "deep/.gitignore": b"*.log\n",
        "deep/kept.log": b"ignored, and there",
        ".gitattributes": b"*.txt text\n",
        "a\nb \"'\t\\.txt": b"odd\r\n",
        "long" * 50 + "/" + "name" * 50: b"longer than the index's flags can say",
        "large.bin": os.urandom(3 << 20),
        "zeros": bytes((1 << 20) + 1),
    }
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    Path(os.fsdecode(os.fsencode(folder) + b"/latin-\xe9")).write_bytes(b"name")
    (folder / "run.sh").write_bytes(b"echo\n")
    (folder / "run.sh").chmod(0o700)
    (folder / "others.sh").write_bytes(b"echo\n")
    (folder / "others.sh").chmod(0o611)
    (folder / "link").symlink_to("deep")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty/inside").mkdir(parents=True)
    os.mkfifo(folder / "fifo")
    return folder


def test_git_names_the_same_commit_and_index_entries(tree, tmp_path):
    by_git = tmp_path / "by git"
    shutil.copytree(tree, by_git, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    name = commit_all(tree)
    git(by_git, "init", "-q", "--template=")
    (by_git / ".git/info").mkdir()
    shutil.copy(tree / ".git/info/attributes", by_git / ".git/info/attributes")
    git(by_git, "add", "-A", "-f")
    git(by_git, "commit", "-qm", "base")
    assert name == head(tree) == git(tree, "rev-parse", "HEAD").strip()
    assert name == git(by_git, "rev-parse", "HEAD").strip()
    assert git(tree, "ls-files", "-s", "-z") == git(by_git, "ls-files", "-s", "-z")
    assert (tree / ".git/config").read_text() == (by_git / ".git/config").read_text()
    assert (tree / ".git/HEAD").read_text() == (by_git / ".git/HEAD").read_text()


def test_git_finds_nothing_wrong_and_nothing_to_compare(tree):
    commit_all(tree)
    assert git(tree, "fsck", "--full", "--strict", "--unreachable", "--no-reflogs") == ""
    assert git(tree, "status", "--porcelain") == ""
    (pack,) = (tree / ".git/objects/pack").glob("*.idx")
    git(tree, "verify-pack", str(pack))
    assert not [p for p in (tree / ".git/objects").rglob("*") if len(p.name) == 38]
    # What `diff-files` lists are entries whose times, sizes or inodes are not the file's.
    assert git(tree, "diff-files", "--raw") == ""
    before = (tree / ".git/index").read_bytes()
    git(tree, "update-index", "-q", "--refresh")
    assert (tree / ".git/index").read_bytes() == before
    # The cached trees are what git would cache.
    shutil.copy(tree / ".git/index", tree / ".git/kept")
    git(tree, "read-tree", "HEAD")
    assert _cached(tree / ".git/index") == _cached(tree / ".git/kept")


def _cached(index: Path) -> bytes:
    data = index.read_bytes()
    return data[data.index(b"TREE") : -20]


def test_a_commit_on_top_is_made_and_a_clone_has_the_files(tree, tmp_path):
    commit_all(tree)
    git(tmp_path, "clone", "-q", str(tree), "clone")
    for path in tree.rglob("*"):
        if path.is_file() and ".git" not in path.relative_to(tree).parts:
            assert (tmp_path / "clone" / path.relative_to(tree)).read_bytes() == path.read_bytes()
    (tree / "a0").write_text("now more\n")
    git(tree, "commit", "-qam", "more")
    git(tree, "gc", "-q")
    assert git(tree, "show", "--stat", "--format=%s").startswith("more\n\n a0 | 1 +")


def test_what_is_packed_already_is_taken_over_and_nothing_else(tree, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(tree, other, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    (other / "deep/er.py").write_text("the answer\n")
    (other / "gone").write_text("also the answer\n")
    commit_all(other)
    alone = tmp_path / "alone"
    shutil.copytree(tree, alone, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    name = commit_all(alone)
    compressed: list[bytes] = []
    compress = commit.zlib.compress

    def counting(data: bytes, level: int) -> bytes:
        compressed.append(data)
        return compress(data, level)

    monkeypatch.setattr(commit.zlib, "compress", counting)
    assert commit_all(tree, known=other) == name
    blobs = [data for data in compressed if b"100644" not in data and not data.startswith(b"tree")]
    assert blobs == [b"\r\n"]
    (made,) = (tree / ".git/objects/pack").glob("*.pack")
    (expected,) = (alone / ".git/objects/pack").glob("*.pack")
    assert made.read_bytes() == expected.read_bytes()
    assert git(tree, "fsck", "--full", "--strict", "--unreachable", "--no-reflogs") == ""


def test_offsets_beyond_two_gigabytes_stand_in_their_own_table(tree, tmp_path, monkeypatch):
    # The table is used from the first MiB on: git reads it whatever the offset.
    monkeypatch.setattr(commit, "_FAR_FROM", 1 << 20)
    commit_all(tree)
    assert git(tree, "fsck", "--full", "--strict") == ""
    again = tmp_path / "again"
    shutil.copytree(tree, again, symlinks=True, ignore=shutil.ignore_patterns("fifo", ".git"))
    commit_all(again, known=tree)
    assert git(again, "fsck", "--full", "--strict") == ""


def test_no_files_are_an_empty_commit(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    commit_all(folder)
    assert git(folder, "fsck", "--full", "--strict") == ""
    assert git(folder, "ls-tree", "-r", "HEAD") == git(folder, "status", "--porcelain") == ""


def test_commit_all_replaces_an_earlier_repository(tree):
    git(tree, "init", "-q")
    (tree / ".git/hooks").mkdir(exist_ok=True)
    (tree / ".git/hooks/pre-commit").write_text("exit 1\n")
    commit_all(tree)
    assert not (tree / ".git/hooks").exists()


def test_a_repository_that_is_a_file_or_a_link_is_dropped_too(tree, tmp_path):
    name = commit_all(tree)
    (tree / ".git").rename(tmp_path / "elsewhere")
    (tree / ".git").write_text("gitdir: ../elsewhere\n")
    assert commit_all(tree) == name
    (tree / ".git").rename(tmp_path / "there")
    (tree / ".git").symlink_to(tmp_path / "there")
    assert commit_all(tree) == name
    assert (tmp_path / "there/HEAD").is_file()


def test_a_repacked_checkout_lends_only_whole_objects(tmp_path):
    lines = [f"line {number} of a file that grows\n" for number in range(400)]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for number in range(8):
            text = "".join(lines[: 300 + 10 * number])
            (tmp_path / folder / f"{number}.txt").write_text(text)
    commit_all(tmp_path / "one")
    git(tmp_path / "one", "repack", "-q", "-adF")
    (pack,) = (tmp_path / "one/.git/objects/pack").glob("*.idx")
    assert "chain length" in git(tmp_path / "one", "verify-pack", "-v", str(pack))
    commit_all(tmp_path / "two", known=tmp_path / "one")
    assert git(tmp_path / "two", "fsck", "--full", "--strict") == ""
    shutil.rmtree(tmp_path / "one/.git/objects/pack")
    commit_all(tmp_path / "two", known=tmp_path / "one")


@pytest.mark.parametrize(
    "name",
    [".GIT", "sub/.git", "git~1", ".git ", ".Git.", ".git::$INDEX_ALLOCATION", "git~1.", ".git\\x"],
)
def test_a_name_that_git_takes_for_its_own_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("gitdir: /elsewhere\n")
    with pytest.raises(TaskError, match=f"git takes no file named {re.escape(name)}"):
        commit_all(tmp_path)


def test_submodules_that_are_a_link_are_refused(tmp_path):
    (tmp_path / ".gitmodules").symlink_to("elsewhere")
    with pytest.raises(TaskError, match=r"git takes no file named \.gitmodules"):
        commit_all(tmp_path)
