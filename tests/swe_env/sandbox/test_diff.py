"""The diff of an overlay, which is asked of what was touched, is git's of the whole workspace."""

from __future__ import annotations

import hashlib
import random

import pytest

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
        patch.setattr(type(box), "_touched", lambda _: None)
        return box.diff()


EDITS = [
    "printf 'more\\n' >>'{}'", "rm -f '{}'", "chmod +x '{}'", "chmod 600 '{}'", ": >'{}'",
    "rm -f '{}'; ln -s nowhere '{}'", "rm -f '{}'; ln -s pkg '{}'", "sed -i s/1/3/ '{}'",
    "mv '{}' '{}.new'", "cp -p '{}' copy; rm '{}'; mv copy '{}'", "printf '\\303' >'{}'",
    "rm '{}'; mkdir '{}'; echo >'{}/inner'", "rm '{}'; mkfifo '{}'", "touch '{}'",
    "echo new >'{}.log'", "git add -f '{}'; git commit -qm mine",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_what_was_touched_gives_the_diff_of_everything(tree, monkeypatch, seed):
    rng = random.Random(seed)
    box = get("local")(SandboxSpec(base=tree))
    paths = [*FILES, "link", "kept.log", ".gitignore"]
    for _ in range(6):
        path = rng.choice(paths)
        box.exec(f"test -p '{path}' || {{ {rng.choice(EDITS).replace('{}', path)}; }}")
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


def test_the_first_git_status_reads_no_file_again(tree):
    box = get("local")(SandboxSpec(base=tree))
    before = hashlib.sha1((tree / ".git/index").read_bytes()).hexdigest()
    assert before in box.exec("git status >/dev/null; sha1sum .git/index").output
    box.close()
