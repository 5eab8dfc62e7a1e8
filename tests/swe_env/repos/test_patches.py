"""Diffs written by `file_diff` are git's, and `apply_patch` refuses what it should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swe_env.errors import PatchError
from swe_env.repos import apply_patch, file_diff
from swe_env.repos.patches import new_file_diff, plainly_applied, reverse_patch

LINES = st.lists(st.sampled_from(["a", "b", "", "c\x0cd", "e\r", "  x", "-- y"]), max_size=30)


@settings(max_examples=40, deadline=None)
@given(old=LINES, new=LINES, ended=st.tuples(st.booleans(), st.booleans()))
def test_a_diff_turns_old_into_new_byte_for_byte(tmp_path_factory, old, new, ended):
    before = "\n".join(old) + ("\n" if ended[0] else "")
    after = "\n".join(new) + ("\n" if ended[1] else "")
    if not before or not after:
        return
    tree = tmp_path_factory.mktemp("tree")
    (tree / "f.txt").write_bytes(before.encode())
    apply_patch(tree, file_diff("f.txt", before, after))
    assert (tree / "f.txt").read_bytes() == after.encode()


@settings(max_examples=60, deadline=None)
@given(
    old=st.lists(st.sampled_from("ab"), min_size=6, max_size=16),
    cut=st.tuples(st.integers(0, 15), st.integers(1, 6)),
    put=st.lists(st.sampled_from("ab"), max_size=1),
)
def test_a_passage_removed_among_others_like_it(tmp_path_factory, old, cut, put):
    new = old[: cut[0]] + put + old[cut[0] + cut[1] :]
    before, after = "".join(f"{x}\n" for x in old), "".join(f"{x}\n" for x in new)
    if not after:
        return
    tree = tmp_path_factory.mktemp("tree")
    (tree / "f.txt").write_text(before)
    apply_patch(tree, file_diff("f.txt", before, after))
    assert (tree / "f.txt").read_text() == after


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "a.py").write_text("one\ntwo\nthree\n")
    subprocess.run(["git", "init", "-q", root], check=True)
    return root


def new_file(path: str) -> str:
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n"
    return head + f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+hi\n"


def test_the_first_reject_is_named(tree):
    with pytest.raises(PatchError, match=r"a\.py differs from what the patch expects at line 1"):
        apply_patch(tree, "--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n-uno\n+eins\n two\n")
    assert (tree / "a.py").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    "path", [".git/hooks/pre-commit", "../out", "sub/../../out", ".GIT/config", "x/.git/config"]
)
def test_patches_that_touch_git_or_leave_the_tree_are_refused(tree, path):
    with pytest.raises(PatchError, match="refused"):
        apply_patch(tree, new_file(path))
    assert not (tree.parent / "out").exists()
    assert not (tree / ".git/hooks/pre-commit").exists()


def test_a_link_in_the_patch_is_no_way_out(tree, tmp_path):
    link = (
        "diff --git a/out b/out\nnew file mode 120000\n--- /dev/null\n+++ b/out\n"
        f"@@ -0,0 +1 @@\n+{tmp_path}\n\\ No newline at end of file\n"
    )
    with pytest.raises(PatchError):
        apply_patch(tree, link + new_file("out/escaped"))
    assert not (tmp_path / "escaped").exists()


def test_it_works_in_a_folder_inside_another_repository(tree):
    inner = tree / "inner"
    inner.mkdir()
    apply_patch(inner, new_file("made.txt"))
    assert (inner / "made.txt").read_text() == "hi\n"


def test_nonsense_is_told_as_such(tree):
    with pytest.raises(PatchError, match="no unified diff"):
        apply_patch(tree, "please fix the bug")
    apply_patch(tree, "")


@settings(max_examples=30, deadline=None)
@given(old=LINES, new=LINES, ended=st.tuples(st.booleans(), st.booleans()))
def test_a_reversed_diff_leads_back_byte_for_byte(tmp_path_factory, old, new, ended):
    before = "\n".join(old) + ("\n" if ended[0] else "")
    after = "\n".join(new) + ("\n" if ended[1] else "")
    if not before or not after:
        return
    tree = tmp_path_factory.mktemp("tree")
    (tree / "f.txt").write_bytes(after.encode())
    apply_patch(tree, reverse_patch(file_diff("f.txt", before, after)))
    assert (tree / "f.txt").read_bytes() == before.encode()


def test_new_deleted_and_renamed_files_are_reversed_too(tmp_path):
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "-q")
    body = "".join(f"line {n}\n" for n in range(20))
    for name in ("kept.txt", "gone.txt", "old.txt"):
        (tmp_path / name).write_text(f"{name}\n{body}")
    git("add", ".")
    git("commit", "-qm", "one")
    (tmp_path / "new.txt").write_text("new\n")
    (tmp_path / "gone.txt").unlink()
    (tmp_path / "old.txt").rename(tmp_path / "moved.txt")
    (tmp_path / "kept.txt").chmod(0o755)
    git("add", "-A")
    patch = git("diff", "--cached", "-M")
    assert "rename from" in patch
    apply_patch(tmp_path, reverse_patch(patch))
    git("reset", "-q")
    assert git("status", "--porcelain", "-uall") == ""
    assert {p.name for p in tmp_path.glob("*.txt")} == {"kept.txt", "gone.txt", "old.txt"}
    assert not (tmp_path / "kept.txt").stat().st_mode & 0o100
    assert reverse_patch(reverse_patch(patch)) == "".join(
        line + "\n" for line in patch.splitlines() if not line.startswith("index ")
    )


@pytest.mark.parametrize("text", ["", "x\n", "x", "a\n\nb\x0cc\n"])
def test_a_diff_makes_a_new_file(tmp_path, text):
    apply_patch(tmp_path, new_file_diff("made/here.py", text))
    assert (tmp_path / "made" / "here.py").read_text() == text


def _by_git(tree: Path, patch: str) -> dict[str, bytes] | None:
    """The files that git makes of the tree, None where it refuses."""
    copy = tree.with_name("by git")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tree, copy, symlinks=True)
    try:
        apply_patch(copy, patch)
    except PatchError:
        return None
    return {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}


WORDS = st.lists(st.sampled_from(["a", "b", "", "c\x0cd", "-- y", "@@ -1 +1 @@"]), max_size=25)


@settings(max_examples=150, deadline=None)
@given(
    old=WORDS,
    new=WORDS,
    ended=st.tuples(st.booleans(), st.booleans()),
    there=st.one_of(st.none(), WORDS),
    hurt=st.tuples(
        st.integers(0, 60),
        st.sampled_from(["", "+x", "-x", " x", "\\ No", "@@ -2,3 +2,4 @@"]),
    ),
)
def test_what_is_plainly_applied_is_what_git_makes(tmp_path_factory, old, new, ended, there, hurt):
    """Whatever the patch and whatever the file is really like."""
    before = "\n".join(old) + ("\n" if ended[0] else "")
    after = "\n".join(new) + ("\n" if ended[1] else "")
    tree = tmp_path_factory.mktemp("trees") / "tree"
    tree.mkdir()
    (tree / "f.txt").write_bytes((before if there is None else "\n".join(there)).encode())
    (tree / "other").write_bytes(b"kept\n")
    patch = file_diff("f.txt", before, after)
    lines = patch.split("\n")
    if hurt[0] < len(lines):
        lines[hurt[0]] = hurt[1]
    for tried in (patch, "\n".join(lines)):
        found = plainly_applied(tree, tried) if tried else None
        if found is not None:
            assert found.keys() == {"f.txt"}
            assert _by_git(tree, tried) == {"other": b"kept\n", **found}


@settings(max_examples=30, deadline=None)
@given(old=WORDS, new=WORDS)
def test_the_diffs_that_tasks_are_made_of_are_plain(tmp_path_factory, old, new):
    before, after = "".join(f"{x}\n" for x in ["top", *old, "end"]), "\n".join(["top", *new])
    tree = tmp_path_factory.mktemp("tree")
    (tree / "f.txt").write_text(before)
    patch = file_diff("f.txt", before, after)
    assert plainly_applied(tree, patch) == {"f.txt": after.encode()}
    indexed = patch.replace("--- a", "index 1234567..89abcde 100644\n--- a")
    assert plainly_applied(tree, indexed) == {"f.txt": after.encode()}


def test_what_is_not_plain_is_left_to_git(tree):
    (tree / "link").symlink_to("a.py")
    (tree / "sub").mkdir()
    (tree / "sub/a.py").write_text("one\ntwo\nthree\n")
    (tree / "by").symlink_to("sub")
    patch = file_diff("a.py", "one\ntwo\nthree\n", "one\n2\nthree\n")
    assert plainly_applied(tree, patch) == {"a.py": b"one\n2\nthree\n"}
    for other in (
        patch.replace("a.py", "link"),
        patch.replace("a.py", "by/a.py"),
        patch.replace("a.py", "../tree/a.py"),
        patch.replace("a.py", "missing.py"),
        patch.replace("a.py", ".git/config"),
        patch.replace("--- a", "index 1234567..89abcde 120000\n--- a"),
        patch.replace("a.py", "GIT~1/a.py"),
        patch.replace("a.py", "a\0.py"),
        patch.replace("-two", " two").replace("+2\n", ""),
        patch.replace("@@ -1", f"@@ -{'1' * 5000}"),
        patch.replace("two", "\ud800"),
        patch.replace("--- a", "old mode 100644\nnew mode 100755\n--- a"),
        patch.replace("b/a.py\n@@", "b/sub/a.py\n@@"),
        patch.replace(" one", " ONE"),
        patch.replace("@@ -1,3 +1,3 @@", "@@ -2,3 +2,3 @@"),
        patch.removesuffix("\n"),
        patch + patch,
        patch + reverse_patch(new_file("new.py")),
        patch + "junk\n",
        new_file("new.py"),
    ):
        assert plainly_applied(tree, other) is None
