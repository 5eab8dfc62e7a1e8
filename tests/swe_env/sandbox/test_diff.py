"""The diff of an overlay, which is asked of what was touched, is git's of the whole workspace."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from swe_env.errors import SandboxError, ToolError
from swe_env.repos.commit import commit_all
from swe_env.sandbox import SandboxSpec, get
from swe_env.sandbox import diff as module

pytestmark = pytest.mark.skipif(bool(get("local").available()), reason="no namespaces here")
FILES = {
    "a.py": "x = 1\ny = 2\n",
    "b c.txt": "text without an end",
    "crlf": "one\r\ntwo\r\n",
    "pkg/é.py": "def f():\n    return 1\n",
    "pkg/binary": "\0\1\2",
    "pkg/run.sh": "echo\n",
    "pkg/empty": "",
}


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "base"
    (folder / "pkg").mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_bytes(text.encode())
    (folder / "pkg/twin.py").write_text("z = 8\nw = 9\n")  # as long as a.py
    (folder / "link").symlink_to("a.py")
    (folder / ".gitignore").write_text("*.log\n")
    (folder / "kept.log").write_text("tracked all the same\n")
    commit_all(folder)
    return folder


@pytest.fixture
def started(monkeypatch):
    """The git commands that were run, by their verb."""
    verbs: list[str] = []
    trusted = module.trusted_git

    def counting(*arguments, **settings):
        git = trusted(*arguments, **settings)

        def counted(*words, **others):
            verbs.append(words[0])
            return git(*words, **others)

        return counted

    monkeypatch.setattr(module, "trusted_git", counting)
    return verbs


def whole(box, monkeypatch):
    """The same diff by adding everything."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_all_tracked", lambda *_: False)
        patch.setattr(module, "_hides", lambda *_: True)
        return box.diff()


EDITS = [
    "printf 'more\\n' >>'{}'", "rm -f '{}'", "chmod +x '{}'", "chmod 600 '{}'", ": >'{}'",
    "rm -f '{}'; ln -s nowhere '{}'", "rm -f '{}'; ln -s pkg '{}'", "sed -i s/1/3/ '{}'",
    "mv '{}' '{}.new'", "cp -p '{}' copy; rm '{}'; mv copy '{}'", "printf '\\303' >'{}'",
    "rm '{}'; mkdir '{}'; echo >'{}/inner'", "rm '{}'; mkfifo '{}'", "touch '{}'",
    "rm -f '{}'; ln -s /etc/passwd '{}'", "rm -f '{}'; ln -s '{}' '{}'",
    "rm -f '{}'; ln -s ../.. '{}'", "cp -p a.py '{}'", "mv -f pkg/twin.py '{}'",
    "rm -r pkg; mkfifo pkg; mkdir own; git init -q own", "mkfifo x.log",
    "git init -q sub.log; echo >sub.log/x", "echo '!x.log' >>.gitignore; echo >x.log",
    "mv pkg other; mv other pkg", "echo new >'{}.log'", "git add -f '{}'; git commit -qm mine",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_what_was_touched_gives_the_diff_of_everything(tree, monkeypatch, seed):
    rng = random.Random(seed)
    box = get("local")(SandboxSpec(base=tree))
    paths = [*FILES, "link", "kept.log", ".gitignore"]
    for _ in range(6):
        path = rng.choice(paths)
        edit = rng.choice(EDITS).replace("{}", path)
        box.exec(f"test -p '{path}' -o -p a.py || {{ {edit}; }}")
        assert box.diff() == whole(box, monkeypatch)
    box.close()


@pytest.mark.parametrize("kind", ["local", "process"])
def test_a_file_that_became_a_fifo_is_gone(tree, kind):
    box = get(kind)(SandboxSpec(base=tree))
    box.exec("rm a.py && mkfifo a.py pkg/new; echo new >new.py; git init -q pkg/own; >pkg/own/x")
    found = box.diff()
    box.close()
    assert "deleted file mode 100644" in found.partition("diff --git a/new.py")[0]
    assert [line[11:] for line in found.splitlines() if line.startswith("diff --git")] == [
        "a/a.py b/a.py", "a/new.py b/new.py", "a/pkg/own/x b/pkg/own/x",
    ]  # fmt: skip


def test_a_repository_that_leads_outside_is_a_folder(tree):
    box = get("local")(SandboxSpec(base=tree))
    box.exec(
        "mkdir one two; git init -q one; echo 1 >one/x; ln -s /etc/passwd two/.git; echo >two/y"
    )
    names = [line for line in box.diff().splitlines() if line.startswith("+++")]
    box.close()
    assert {"+++ b/one/x", "+++ b/two/y"} <= set(names)


def test_git_is_asked_no_more_than_it_must_be(tree, started):
    box = get("local")(SandboxSpec(base=tree))
    assert box.diff() == ""
    box.exec("git status --short; git log; rm .git/index; touch .git/mine")
    assert box.diff() == ""
    assert started == []
    box.exec("sed -i s/1/3/ a.py; rm pkg/empty")
    assert "+x = 3" in box.diff()
    assert started == ["diff"]
    started.clear()
    box.exec("echo new >new.py")
    assert "+new" in box.diff()
    assert started == ["add", "diff"]
    box.close()


@pytest.mark.parametrize("kind", ["local", "process"])
@pytest.mark.parametrize(
    "move",
    [
        "cp -p pkg/twin.py a.py",
        "mv pkg/twin.py a.py",
        "mv pkg o; mv a.py b; mv b a.py; mv o pkg",
        "sed -i s/1/3/ a.py; touch -r pkg a.py",
    ],
)
def test_a_change_of_neither_size_nor_time_is_seen(tree, kind, move):
    box = get(kind)(SandboxSpec(base=tree))
    box.exec(move)
    found = box.diff()
    box.close()
    changed = tree.with_name("changed")
    shutil.copytree(tree, changed, symlinks=True)
    subprocess.run(["sh", "-c", move], cwd=changed, check=True)
    subprocess.run(["touch", "a.py"], cwd=changed, check=True)
    expected = subprocess.run(
        ["git", "diff", "--full-index"], cwd=changed, check=True, capture_output=True, text=True
    )
    assert found == expected.stdout
    assert bool(found) == (not move.startswith("mv pkg o"))


def test_a_file_of_the_base_that_its_repository_ignores_is_never_lost(tree):
    (tree / ".git/info/exclude").write_text("/made.py\n")
    (tree / "made.py").write_text("x\n")
    (tree / "mine.py").write_text("x\n")  # not tracked, as in a base of somebody else's
    box = get("local")(SandboxSpec(base=tree))
    box.exec("echo y >>made.py; echo y >>a.py; rm mine.py")
    assert [line for line in box.diff().splitlines() if line.startswith("+++")] == ["+++ b/a.py"]
    box.exec("echo y >>mine.py")
    assert "+++ b/mine.py" in box.diff()
    box.exec("echo '!made.py' >>.gitignore")
    assert "+++ b/made.py" in box.diff()
    box.close()


def test_a_workspace_that_cannot_be_read_is_the_machinerys_failure(tree, monkeypatch):
    def unreadable(_: object) -> None:
        raise ToolError("There is no .")

    box = get("local")(SandboxSpec(base=tree))
    monkeypatch.setattr(type(box.files), "touched", unreadable)
    with pytest.raises(SandboxError, match=r"The workspace cannot be read: There is no \."):
        box.diff()
    box.close()
