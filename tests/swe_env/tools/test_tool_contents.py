"""What `search` reads from memory is what it would read from the workspace."""

from __future__ import annotations

from pathlib import Path

import pytest

from swe_env.sandbox import SandboxSpec, get
from swe_env.sandbox.layered import LayeredFiles
from swe_env.tools import contents as module
from swe_env.tools.contents import contents

pytestmark = pytest.mark.skipif(bool(get("local").available()), reason="no namespaces here")

FILES = {
    ".gitignore": "*.log\nbuild/\n",
    "README": "read me\n",
    "a.py": "one\n",
    "a/b/deep.py": "deep\n",
    "a/b/other.py": "other\n",
    "a/mod.py": "mod\n",
    "b/mod.py": "b mod\n",
    "b/c/x.py": "x\n",
    "build/made.py": "made\n",
    "data.bin": "\0\1",
    "noise.log": "noise\n",
    "z.txt": "last",
}

CHANGES = [
    "echo two > a.py",
    "echo new > a/b/new.py; echo new > new.txt",
    "rm a/mod.py",
    "rm -r a/b",
    "mv a moved",
    "mv a c; mv b a; mv c b",
    "rm -r a; mkdir a; echo fresh > a/fresh.py",
    "rm README; mkdir README; echo in > README/in.py",
    "rm -r b; ln -s a b",
    "rm -r b; echo a file > b",
    "ln -s a/mod.py link.py; rm z.txt; ln -s README z.txt",
    "mkdir -p n/m; echo '*.py' > n/.gitignore; echo 1 | tee n/x.py n/m/x.txt n/m/y.py",
    "echo '!noise.log' >> .gitignore",
    "rm .gitignore",
    "echo '*.py' > a/.gitignore",
    "printf '\\0' > a.py; printf 'text' > data.bin",
    "chmod 000 a.py; touch b/mod.py; mkfifo pipe",
    "git init -q a; git -C a add -A; git init -q n; echo new > n/x.py",
    "ln a.py hard.py; echo more >> hard.py",
    "mkdir -p build/x; echo hid > build/x/y.py; echo new >> build/made.py",
]


@pytest.fixture(scope="module")
def layered_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("layered")
    for name, text in FILES.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return base


@pytest.mark.parametrize("change", ["true", *CHANGES])
def test_memory_and_workspace_agree(layered_base, change):
    with get("local")(SandboxSpec(base=layered_base)) as box:
        assert isinstance(box.files, LayeredFiles)
        done = box.exec(change)
        assert done.exit_code == 0, done.output
        folders = ["", *(path for path, entry in box.files.walk() if entry.kind == "dir")]
        for folder in folders:
            read = list(module._read(box.files, folder))
            assert list(contents(box.files, folder)) == read, folder
        before = dict(contents(box.files, ""))
        twin = box.fork()
        assert dict(contents(twin.files, "")) == before
        twin.close()


@pytest.mark.parametrize("kind", ["local", "process"])
def test_files_of_the_checkout_are_searched_whatever_is_ignored(layered_base, kind):
    with get(kind)(SandboxSpec(base=layered_base)) as box:
        box.exec("echo more >> build/made.py; echo new | tee build/new.py new.log")
        found = dict(contents(box.files, ""))
    assert found["build/made.py"] == b"made\nmore\n"
    assert found["noise.log"] == b"noise\n"
    assert not {"build/new.py", "new.log"} & set(found)


def test_an_unchanged_checkout_is_not_read_again(layered_base, monkeypatch):
    with get("local")(SandboxSpec(base=layered_base)) as box:
        first = list(contents(box.files, ""))
        box.files.write("a.py", b"changed\n")
        opened: list[str] = []
        read = LayeredFiles.read

        def counted(self: LayeredFiles, path: str, **more: int) -> bytes:
            opened.append(path)
            return read(self, path, **more)

        monkeypatch.setattr(LayeredFiles, "read", counted)
        again = list(contents(box.files, ""))
    assert [name for name, _ in again] == [name for name, _ in first]
    assert dict(again)["a.py"] == b"changed\n"
    assert set(opened) == {"a.py", ".gitignore"}


def test_restoring_a_snapshot_is_seen(layered_base):
    with get("local")(SandboxSpec(base=layered_base)) as box:
        clean = list(contents(box.files, ""))
        state = box.snapshot()
        box.exec("rm -r a; echo new > new.txt")
        assert list(contents(box.files, "")) != clean
        box.restore(state)
        assert list(contents(box.files, "")) == clean
        state.discard()


def test_bases_in_memory_are_bounded(layered_base, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_corpora", type(module._corpora)())
    monkeypatch.setattr(module, "_KEPT", 30)
    monkeypatch.setattr(module, "_LARGEST_BASE", 25)
    for number in range(4):
        base = tmp_path / str(number)
        base.mkdir()
        (base / "text").write_text("20 characters of it.")
        assert module._corpus(base) is not None
    assert len(module._corpora) == 1
    (tmp_path / "0" / "more").write_text("10 of them")
    assert module._corpus(tmp_path / "0") is None
