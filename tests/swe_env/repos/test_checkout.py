"""Checkouts: one deterministic commit, nothing of the future, nothing half built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from swe_env.errors import TaskError
from swe_env.repos import base, checkout, file_diff, head, pristine
from swe_env.repos.patches import (
    apply_patch,
    new_file_diff,
    plainly_applied,
    reverse_patch,
)
from swe_env.sandbox import SandboxSpec, get
from swe_env.types import Source, Task


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SWE_ENV_MIRRORS", raising=False)
    return tmp_path / "cache"


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=dev", "-c", "user.email=dev@example.org"]
    return subprocess.run(
        ["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def upstream(tmp_path):
    """A repository with a fix in its future, a tag on it and an ignored file."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "mod.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("*.log\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")
    commit = git(folder, "rev-parse", "HEAD").strip()
    (folder / "mod.py").write_text("x = 'the fix'\n")
    git(folder, "commit", "-qam", "the fix")
    git(folder, "tag", "v2")
    return folder, commit


def task(source: Source, commit: str, patch: str = "") -> Task:
    return Task(
        instance_id="t-1",
        repo="t",
        base_commit=commit,
        problem_statement="",
        source=source,
        base_patch=patch,
    )


def test_a_git_base_holds_no_later_commit_tag_remote_or_reflog(upstream, cache):
    folder, commit = upstream
    made = base(task(Source(kind="git", location=str(folder)), commit))
    assert (made / "mod.py").read_text() == "x = 1\n"
    assert git(made, "rev-list", "--all", "--count").strip() == "1"
    assert git(made, "remote") == git(made, "tag") == git(made, "status", "--porcelain") == ""
    assert not (made / ".git/logs").exists()
    assert not (made / ".git/hooks").exists()
    assert not (made / ".git/FETCH_HEAD").exists()
    objects = git(made, "cat-file", "--batch-all-objects", "--batch-check").split()[::3]
    contents = [git(made, "cat-file", "-p", name) for name in objects]
    assert not any("the fix" in content for content in contents)
    assert git(made, "fsck", "--unreachable", "--no-reflogs") == ""


def test_the_mirror_folder_comes_before_the_origin(upstream, tmp_path, monkeypatch):
    folder, commit = upstream
    mirrors = tmp_path / "mirrors"
    mirrors.mkdir()
    git(tmp_path, "clone", "-q", "--bare", str(folder), str(mirrors / "own__er.git"))
    monkeypatch.setenv("SWE_ENV_MIRRORS", str(mirrors))
    made = base(task(Source(kind="git", location="own/er"), commit))
    assert (made / "mod.py").read_text() == "x = 1\n"


def test_a_commit_that_is_not_there_is_one_sentence_and_no_base(upstream, cache):
    folder, _ = upstream
    with pytest.raises(TaskError, match=r"could not be fetched .*SWE_ENV_MIRRORS"):
        base(task(Source(kind="git", location=str(folder)), "0" * 40))
    assert [p for p in (cache / "pristine").iterdir() if p.suffix != ".lock"] == []


def test_the_same_files_give_the_same_commit_whoever_and_whenever(tmp_path, monkeypatch):
    commits = []
    for name, author in (("one", "Ann"), ("two", "Bob")):
        folder = tmp_path / name / "pkg"
        folder.mkdir(parents=True)
        (folder / "mod.py").write_text("x = 1\n")
        (folder / "run.sh").write_text("echo\n")
        (folder / "run.sh").chmod(0o755)
        os.utime(folder / "mod.py", (1, 1) if name == "one" else None)
        monkeypatch.setenv("GIT_AUTHOR_NAME", author)
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
        commits.append(head(pristine(Source(kind="folder", location=str(folder)))))
    assert commits[0] == commits[1]


def test_base_patch_is_applied_into_the_one_commit(tmp_path):
    folder = tmp_path / "pkg"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__/mod.pyc").write_bytes(b"old")
    (folder / "mod.py").write_text("x = 1\n")
    (folder / "mod.py.orig").write_text("x = 'answer'\n")
    source = Source(kind="folder", location=str(folder))
    commit = head(pristine(source))
    made = base(task(source, commit, file_diff("mod.py", "x = 1\n", "x = 2\n")))
    assert (made / "mod.py").read_text() == "x = 2\n"
    assert sorted(p.name for p in made.iterdir()) == [".git", "mod.py"]
    assert git(made, "log", "--format=%s") == "base\n"
    assert git(made, "status", "--porcelain") == ""


def test_file_times_do_not_tell_what_was_patched(tmp_path):
    folder = tmp_path / "pkg"
    (folder / "sub").mkdir(parents=True)
    for name in ("mod.py", "sub/other.py"):
        (folder / name).write_text("x = 1\n")
        os.utime(folder / name, (1e9, 1e9))
    (folder / "link").symlink_to("mod.py")
    source = Source(kind="folder", location=str(folder))
    commit = head(pristine(source))
    made = base(task(source, commit, file_diff("sub/other.py", "x = 1\n", "x = 2\n")))
    paths = [made, *made.rglob("*")]
    times = {p.lstat().st_mtime_ns for p in paths if ".git" not in p.relative_to(made).parts}
    assert len(times) == 1
    assert len({p.lstat().st_mtime_ns for p in [made / ".git", *(made / ".git").rglob("*")]}) == 1
    assert git(made, "status", "--porcelain") == ""
    box = get("process")(SandboxSpec(base=made))
    find = ["find", ".", "-mindepth", "1", "-path", "./.git", "-prune", "-o", "-printf", "%T@\\n"]
    copied = box.exec(find)
    box.close()
    assert len(set(copied.output.split())) == 1


def test_a_base_shares_no_file_with_the_pristine_one_and_leaves_it_as_it_was(tmp_path):
    folder = tmp_path / "pkg"
    (folder / "sub").mkdir(parents=True)
    for name in ("kept.py", "sub/changed.py", "sub/gone.py"):
        (folder / name).write_text(f"x = {name!r}\n" * 40)
    source = Source(kind="folder", location=str(folder))
    origin = pristine(source)
    patch = file_diff("sub/changed.py", "x = 'sub/changed.py'\n" * 40, "x = 2\n" * 40)
    text = (origin / "sub/gone.py").read_text()
    patch += reverse_patch(new_file_diff("sub/gone.py", text)) + new_file_diff("new.py", "y = 1\n")
    made = base(task(source, head(origin), patch))
    assert (made / "sub/changed.py").read_text() == "x = 2\n" * 40
    assert not (made / "sub/gone.py").exists()
    assert (made / "new.py").read_text() == "y = 1\n"
    assert git(made, "status", "--porcelain") == ""
    files = [p for tree in (made, origin) for p in tree.rglob("*") if p.is_file()]
    assert {p.stat().st_nlink for p in files} == {1}
    assert git(origin, "fsck", "--unreachable", "--no-reflogs") == ""
    assert (origin / "sub/changed.py").read_text() == "x = 'sub/changed.py'\n" * 40
    names = git(made, "cat-file", "--batch-all-objects", "--batch-check").split()[::3]
    contents = [git(made, "cat-file", "-p", name) for name in names]
    assert not any("x = 'sub/" in content for content in contents)


def test_no_attribute_of_the_tree_changes_what_is_stored(tmp_path):
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / ".gitattributes").write_text("*.txt text\n*.bat text eol=crlf\n*.py diff\n")
    (folder / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    (folder / "run.bat").write_bytes(b"echo\r\n")
    (folder / "empty").touch()
    origin = pristine(Source(kind="folder", location=str(folder)))
    assert git(origin, "status", "--porcelain") == ""
    stored = subprocess.run(
        ["git", "cat-file", "-p", "HEAD:a.txt"], cwd=origin, check=True, capture_output=True
    ).stdout
    assert stored == b"one\r\ntwo\r\n"


@pytest.mark.parametrize(
    "rules", ["* working-tree-encoding=UTF-16", "* text", "* ident", "* diff", "*.py -diff"]
)
def test_no_attribute_that_an_agent_writes_changes_the_diff(tmp_path, rules):
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "mod.py").write_bytes(b"x = 1\r\n# $Id$\r\n")
    made = base(task(Source(kind="folder", location=str(folder)), ""))
    box = get("process")(SandboxSpec(base=made))
    wanted = {
        ".gitattributes": f"{rules}\n".encode(),
        "mod.py": b"x = 2\r\n# $Id$\r\n",
        "latin.txt": "é\n".encode("latin-1"),
    }
    for path, data in wanted.items():
        if path == "latin.txt":
            assert "+x = 2" in box.diff()
        box.files.write(path, data)
    patch = box.diff()
    box.close()
    patched = tmp_path / "patched"
    shutil.copytree(made, patched)
    shutil.rmtree(patched / ".git")
    apply_patch(patched, patch)
    assert {path: (patched / path).read_bytes() for path in wanted} == wanted


def test_a_changed_folder_is_refused_and_leaves_nothing(tmp_path, cache):
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "mod.py").write_text("x = 1\n")
    source = Source(kind="folder", location=str(folder))
    with pytest.raises(TaskError, match="is not what t-1 was made from"):
        base(task(source, "f" * 40))
    with pytest.raises(TaskError, match="base patch of t-1 fails"):
        base(task(source, head(pristine(source)), file_diff("mod.py", "y = 1\n", "y = 2\n")))
    assert [p for p in (cache / "bases").iterdir() if p.suffix != ".lock"] == []


@pytest.mark.parametrize("far", [False, True])
def test_files_are_written_once_each_in_an_order_that_no_patch_changes(tmp_path, monkeypatch, far):
    """Whether git applies the patch (its hunk is elsewhere than it says) or it is plain."""
    folder = tmp_path / "pkg"
    folder.mkdir()
    names = [f"m{number:02}.py" for number in range(20)]
    for name in reversed(names):
        (folder / name).write_text("x = 1\n" * 9 + f"y = {name!r}\n" + "z = 3\n" * 9)
    (folder / "m07.py").chmod(0o600)
    text = (folder / "m07.py").read_text()
    patch = file_diff("m07.py", text, text.replace("y =", "why ="))
    if far:
        patch = patch.replace("@@ -7,7 +7,7 @@", "@@ -5,7 +5,7 @@")
    source = Source(kind="folder", location=str(folder))
    origin = pristine(source)
    assert (plainly_applied(origin, patch) is None) is far
    written: list[str] = []
    copy = shutil.copyfileobj

    def counting(old, new):
        written.append(Path(new.name).name)
        copy(old, new)

    monkeypatch.setattr(checkout.shutil, "copyfileobj", counting)
    made = base(task(source, head(origin), patch))
    assert "why = 'm07.py'" in (made / "m07.py").read_text()
    assert written == names
    assert {(made / name).stat().st_mode & 0o777 for name in names} == {0o644}
