"""Editing: exact, tolerant of indentation only, never breaking a file or losing a byte."""

from __future__ import annotations

import contextlib
import difflib

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from swe_env import sandbox as sandboxes
from swe_env.errors import ToolError
from swe_env.sandbox import SandboxSpec
from swe_env.tools import hunks as hunks_module
from swe_env.tools.edit_lines import replaced
from swe_env.tools.indentation import reindent, step
from swe_env.tools.matching import replace
from swe_env.tools.text import TextFile, split

SOURCE = """\
class A:
    def one(self):
        if True:
            return 1
        return 0

    def two(self):
        return 0
"""


def test_an_exact_passage_is_replaced_and_shown(desk):
    desk.put("a.py", SOURCE)
    result = desk.call("edit", path="a.py", old_str="return 1", new_str="return 2")
    assert result.exit_code == 0
    assert desk.get("a.py").decode() == SOURCE.replace("return 1", "return 2")
    assert "     4\t            return 2" in result.text
    assert "two" in result.text
    assert len(result.text.splitlines()) <= 8


def test_several_places_are_refused_with_their_lines(desk):
    desk.put("a.py", SOURCE)
    result = desk.call("edit", path="a.py", old_str="return 0", new_str="return 3")
    assert result.exit_code == 1
    assert "2 times" in result.text
    assert "lines 5, 8" in result.text
    assert desk.get("a.py").decode() == SOURCE


def test_white_space_at_line_starts_may_differ(desk):
    desk.put("a.py", SOURCE)
    result = desk.call(
        "edit",
        path="a.py",
        old_str="if True:\n    return 1",
        new_str="if False:\n    return 2\nx = 1",
    )
    assert result.exit_code == 0
    assert "re-indented" in result.text
    expected = SOURCE.replace(
        "        if True:\n            return 1\n",
        "        if False:\n            return 2\n        x = 1\n",
    )
    assert desk.get("a.py").decode() == expected


def test_tabs_are_kept_when_spaces_were_written(desk):
    desk.put("a.py", "def f():\n\tif 1:\n\t\treturn 1\n")
    result = desk.call(
        "edit",
        path="a.py",
        old_str="    if 1:\n        return 1",
        new_str="    if 2:\n        return 2",
    )
    assert result.exit_code == 0
    assert desk.get("a.py") == b"def f():\n\tif 2:\n\t\treturn 2\n"


def test_loose_places_must_be_unique_too(desk):
    desk.put("a.py", SOURCE + "\n\ndef three():\n    return 0\n")
    result = desk.call("edit", path="a.py", old_str="   return 0\n", new_str="   return 9\n")
    assert result.exit_code == 1
    assert "lines 5, 8, 12" in result.text


def test_a_passage_that_is_nowhere_shows_the_nearest(desk):
    desk.put("a.py", SOURCE)
    result = desk.call("edit", path="a.py", old_str="def won(self):", new_str="def uno(self):")
    assert result.exit_code == 1
    assert "     2\t    def one(self):" in result.text


@pytest.mark.parametrize("arguments", [{"old_str": "return 1", "new_str": "return 1"}])
def test_an_edit_that_changes_nothing_is_refused(desk, arguments):
    desk.put("a.py", SOURCE)
    result = desk.call("edit", path="a.py", **arguments)
    assert result.exit_code == 1
    assert "nothing to do" in result.text


def test_a_loose_edit_that_changes_nothing_is_refused(desk):
    desk.put("a.py", SOURCE)
    result = desk.call("edit", path="a.py", old_str="\treturn 1", new_str=" return 1")
    assert result.exit_code == 1
    assert desk.get("a.py").decode() == SOURCE


def test_an_edit_that_breaks_the_syntax_is_refused_with_the_lines(desk):
    desk.put("a.py", SOURCE)
    result = desk.call("edit", path="a.py", old_str="return 1", new_str="return (1")
    assert result.exit_code == 1
    assert "never closed" in result.text
    assert "     4\t            return (1" in result.text
    assert desk.get("a.py").decode() == SOURCE


def test_a_broken_file_may_be_mended_in_steps(desk):
    desk.put("a.py", "def f(:\n    return (1\n")
    assert desk.call("edit", path="a.py", old_str="f(:", new_str="f():").exit_code == 0
    assert desk.call("edit", path="a.py", old_str="(1", new_str="1").exit_code == 0


def test_files_are_created_but_not_over_others(desk):
    assert desk.call("edit", path="new/b.py", new_str="x = 1\n").exit_code == 0
    assert desk.get("new/b.py") == b"x = 1\n"
    result = desk.call("edit", path="new/b.py", new_str="y = 1\n")
    assert result.exit_code == 1
    assert desk.get("new/b.py") == b"x = 1\n"
    assert desk.call("edit", path="c.py", new_str="x = (\n").exit_code == 1
    assert desk.box.files.stat("c.py") is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"a = 1\r\nb = 2\r\n", b"a = 1\r\nb = 3\r\nc = 4\r\n"),
        (b"\xef\xbb\xbfa = 1\nb = 2\n", b"\xef\xbb\xbfa = 1\nb = 3\nc = 4\n"),
        (b"# \xff\xfe\na = 1\nb = 2\n", b"# \xff\xfe\na = 1\nb = 3\nc = 4\n"),
        (b"a = 1\nb = 2", b"a = 1\nb = 3\nc = 4"),
        (b"a = 1\n\x0c\nb = 2\n", b"a = 1\n\x0c\nb = 3\nc = 4\n"),
        (b"a = 1\rx\nb = 2\n", b"a = 1\rx\nb = 3\nc = 4\n"),
    ],
)
def test_what_is_not_edited_is_kept_byte_for_byte(desk, before, after):
    desk.put("a.txt", before)
    assert desk.call("edit", path="a.txt", old_str="b = 2", new_str="b = 3\nc = 4").exit_code == 0
    assert desk.get("a.txt") == after


def test_crlf_passages_over_several_lines_match(desk):
    desk.put("a.txt", b"a\r\nb\r\nc\r\n")
    assert desk.call("edit", path="a.txt", old_str="a\nb", new_str="x\ny").exit_code == 0
    assert desk.get("a.txt") == b"x\r\ny\r\nc\r\n"


@pytest.mark.parametrize("path", ["../out.py", "/etc/passwd", "missing.py", ""])
def test_paths_outside_or_missing_are_told(desk, path):
    result = desk.call("edit", path=path, old_str="a", new_str="b")
    assert result.exit_code == 1
    assert result.text.startswith("Error: ")


def test_binary_files_are_refused(desk):
    desk.put("a.bin", b"\0\1\2")
    assert "binary" in desk.call("edit", path="a.bin", old_str="a", new_str="b").text


def test_lines_are_replaced_inserted_and_deleted(desk):
    desk.put("a.txt", "1\n2\n3\n")
    assert desk.call("edit_lines", path="a.txt", first=2, last=2, text="two").exit_code == 0
    assert desk.call("edit_lines", path="a.txt", first="1", last="0", text="zero").exit_code == 0
    assert desk.get("a.txt") == b"zero\n1\ntwo\n3\n"
    assert desk.call("edit_lines", path="a.txt", first=1, last=2).exit_code == 0
    assert desk.call("edit_lines", path="a.txt", first=3, last=2, text="end\n").exit_code == 0
    assert desk.get("a.txt") == b"two\n3\nend\n"
    assert "3 lines" in desk.call("edit_lines", path="a.txt", first=3, last=9, text="x").text


def test_a_diff_over_two_files_is_applied_whole_or_not_at_all(desk):
    desk.put("a.py", "a = 1\n")
    desk.put("b.py", "b = 1\n")
    good = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-a = 1\n+a = 2\n"
    new = "--- /dev/null\n+++ b/c.py\n@@ -0,0 +1 @@\n+c = 1\n"
    assert desk.call("apply_diff", diff=good + new).exit_code == 0
    assert desk.get("a.py") == b"a = 2\n"
    assert desk.get("c.py") == b"c = 1\n"
    broken = "--- a/b.py\n+++ b/b.py\n@@ -1 +1 @@\n-b = 1\n+b = (\n"
    back = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-a = 2\n+a = 3\n"
    result = desk.call("apply_diff", diff=back + broken)
    assert result.exit_code == 1
    assert desk.get("a.py") == b"a = 2\n"
    assert desk.get("b.py") == b"b = 1\n"
    result = desk.call("apply_diff", diff=good)
    assert "does not apply" in result.text
    assert result.text.endswith("The nearest lines are:\n     1\ta = 2")


def test_undo_goes_back_step_by_step(desk):
    desk.put("a.py", "a = 1\n")
    desk.call("edit", path="a.py", old_str="1", new_str="2")
    desk.call("edit", path="b.py", new_str="b = 1\n")
    kept = dict(desk.ctx.state)
    assert "b.py" in desk.call("undo").text
    assert desk.box.files.stat("b.py") is None
    assert desk.get("a.py") == b"a = 2\n"
    assert desk.call("undo").exit_code == 0
    assert desk.get("a.py") == b"a = 1\n"
    assert desk.call("undo").exit_code == 1
    assert len(kept["changes"]) == 2  # a forked episode's history is not touched


@given(st.binary(max_size=200).filter(lambda data: b"\0" not in data))
def test_any_bytes_survive_taking_apart_and_putting_together(data):
    found = TextFile.decode(data)
    assert found.encode() == data
    assert "".join(found.pieces) == found.text
    assert len(found.pieces) == len(found.lines)


def reindented(new, written, actual):
    return [line for line, _ in reindent(split(new), written, actual, step(actual))]


@pytest.mark.parametrize(
    ("new", "written", "actual", "made"),
    [
        (  # two spaces are a tab, so four are two
            "if a:\n  b\n  if c:\n      d",
            ["if a:", "  b"],
            ["\tif a:", "\t\tb"],
            ["\tif a:", "\t\tb", "\t\tif c:", "\t\t\t\td"],
        ),
        ("if a:\n    b", ["a"], ["\t\ta"], ["\t\tif a:", "\t\t\tb"]),
        ("if a:\n\tb", ["a"], ["    a"], ["    if a:", "        b"]),
        (
            "if a:\n  b\nelse:\n  c",
            ["if a:", "  b"],
            ["    if a:", "        b"],
            ["    if a:", "        b", "    else:", "        c"],
        ),
        ("    a\nb", ["    a"], ["\t\ta"], ["\t\ta", "\tb"]),
        ("f(a,\n  c)", ["f(a,", "  b)"], ["  f(a,", "    b)"], ["  f(a,", "    c)"]),
    ],
)
def test_reindenting_keeps_steps_inside_new_text(new, written, actual, made):
    assert reindented(new, written, actual) == made


def test_unchanged_lines_keep_their_own_indentation(desk):
    source = 'def f():\n    text = """\nplain\n  more\n"""\n    return 1\n'
    desk.put("a.py", source)
    old = 'text = """\nplain\n  more\n"""\nreturn 1'
    edit = {"path": "a.py", "old_str": old, "new_str": old.replace("more", "less")}
    assert desk.call("edit", **edit).exit_code == 0
    assert desk.get("a.py").decode() == source.replace("more", "less")


LOOP = "def f():\n    for x in y:\n        z()\n        a()\n    b()\n"


@pytest.mark.parametrize("new", ["a()\nc()\n", "c()\nb()\n", "b()\na()\n", "a()\nb()\nc()\n"])
def test_one_written_depth_for_two_in_the_file_is_refused_with_the_lines(desk, new):
    desk.put("a.py", LOOP)
    result = desk.call("edit", path="a.py", old_str="a()\nb()\n", new_str=new)
    assert result.exit_code == 1
    assert "different depths" in result.text
    assert result.text.endswith("     4\t        a()\n     5\t    b()")
    assert desk.get("a.py").decode() == LOOP


def test_a_line_may_go_whatever_the_depths(desk):
    desk.put("a.py", LOOP)
    assert desk.call("edit", path="a.py", old_str="a()\nb()\n", new_str="a()\n").exit_code == 0
    assert desk.get("a.py").decode() == LOOP.replace("    b()\n", "")


def test_which_of_two_alike_is_left_must_be_plain(desk):
    desk.put("a.py", LOOP.replace("b()", "a()"))
    assert desk.call("edit", path="a.py", old_str="a()\na()\n", new_str="a()\n").exit_code == 1


@pytest.mark.parametrize(
    ("old", "new", "after"),
    [
        ("a = 1\nb = 2\n", "a = 1\nb = 3\n", b"a = 1\r\nb = 3\nc = 3\r\n"),
        ("a = 1\nb = 2\n", "a = 0\nb = 2\nx\n", b"a = 0\r\nb = 2\nx\nc = 3\r\n"),
        ("a = 1\nb = 2\nc = 3", "a = 1\nx\nc = 3", b"a = 1\r\nx\nc = 3\r\n"),
    ],
)
def test_lines_keep_their_own_ends(desk, old, new, after):
    desk.put("a.txt", b"a = 1\r\nb = 2\nc = 3\r\n")
    result = desk.call("edit", path="a.txt", old_str=old, new_str=new)
    assert result.exit_code == 0
    assert "re-indented" not in result.text
    assert desk.get("a.txt") == after


def test_a_folder_is_no_file_to_create(desk):
    desk.put("d/x.txt", "x")
    result = desk.call("edit", path="d", new_str="x")
    assert (result.exit_code, result.text) == (1, "Error: d is a folder: give the path of a file.")


LINES = st.lists(
    st.tuples(
        st.text("ab \t\x0c\ré\udcff", max_size=6).filter(lambda line: not line.endswith("\r")),
        st.sampled_from(["\n", "\r\n"]),
    ),
    max_size=8,
)


def mixed(lines, ended):
    """A file with line ends of both kinds, with or without a last one."""
    text = "".join(line + end for line, end in lines)
    return TextFile(text if ended or not lines else text[: -len(lines[-1][1])], bom=ended)


@given(LINES, st.booleans(), st.data())
def test_an_edit_keeps_every_byte_outside_its_passage(lines, ended, data):
    found = mixed(lines, ended)
    start = data.draw(st.integers(0, max(len(found.text) - 1, 0)))
    old = found.text[start : data.draw(st.integers(start + 1, len(found.text) + 1))]
    assume(old.strip() and not old.startswith("\n") and not old.endswith("\r"))
    new = data.draw(st.text("xy \n", max_size=6))
    shown = old.replace("\r\n", "\n")  # what `view` shows of it
    with contextlib.suppress(ToolError):
        made = replace(found, "a.txt", shown, new)
        # White space aside whole lines are matched: half a line may be one that stands elsewhere.
        assume(not made.said or start == 0 or found.text[start - 1] == "\n")
        check_outside(found, made, start, old)


def check_outside(found, made, start, old):
    if made.said:  # white space aside: whole lines around the passage
        first, last = found.text.rfind("\n", 0, start) + 1, found.text.find("\n", start + len(old))
        # A passage of whole lines that becomes nothing takes its last line's end with it.
        head, tail = found.text[:first], found.text[last + 1 :] if last >= 0 else ""
    else:
        head, tail = found.text[:start], found.text[start + len(old) :]
    assert made.text.startswith(head)
    assert made.text.endswith(tail)
    fresh = TextFile(made.text, found.bom).encode()
    assert fresh[: len(TextFile(head, found.bom).encode())] == TextFile(head, found.bom).encode()


@given(LINES, st.booleans(), st.text("xy\n", max_size=6), st.data())
def test_replacing_lines_keeps_every_other_line(lines, ended, text, data):
    found = mixed(lines, ended)
    pieces = found.pieces
    first = data.draw(st.integers(1, len(pieces) + 1))
    last = data.draw(st.integers(first - 1, len(pieces)))
    made = replaced(found, first, last, text)
    before, after = "".join(pieces[: first - 1]), "".join(pieces[last:])
    assert made.startswith(before)
    assert made.endswith(after)
    middle = made[len(before) : len(made) - len(after)]
    assert middle.replace("\r\n", "\n").strip("\n") == text.strip("\n")


def test_new_lines_end_as_their_neighbours_do(desk):
    desk.put("a.txt", b"a\nb\nc\r\nd\r\n")
    assert desk.call("edit", path="a.txt", old_str="d", new_str="d\ne").exit_code == 0
    assert desk.call("edit", path="a.txt", old_str="a\nb", new_str="a\nx\nb").exit_code == 0
    assert desk.call("edit_lines", path="a.txt", first=4, last=4, text="y\nz").exit_code == 0
    assert desk.get("a.txt") == b"a\nx\nb\ny\r\nz\r\nd\r\ne\r\n"


def test_undo_does_not_lose_what_a_command_changed_since(desk):
    desk.put("a.py", "a = 1\n")
    desk.call("edit", path="a.py", old_str="1", new_str="2")
    desk.call("bash", command="echo 'b = 3' >> a.py")
    result = desk.call("undo")
    assert result.exit_code == 1
    assert "changed since" in result.text
    assert desk.get("a.py") == b"a = 2\nb = 3\n"


def test_undo_of_a_file_that_was_there_empty_leaves_it_empty(desk):
    desk.put("a.py", "")
    desk.call("edit", path="a.py", new_str="a = 1\n")
    assert desk.call("undo").exit_code == 0
    assert desk.get("a.py") == b""


def test_the_tasks_own_python_has_the_last_word_on_syntax(desk, tmp_path):
    """It may be newer than ours: what it compiles is no broken file. Here one that takes all."""
    newer = tmp_path / "bin" / "python"
    newer.parent.mkdir()
    newer.write_text("#!/bin/sh\ncat > /dev/null\n")
    newer.chmod(0o755)
    edit = {"path": "a.py", "old_str": "a = 1", "new_str": "type a (1)"}
    desk.put("a.py", "a = 1\n")
    assert desk.call("edit", **edit).exit_code == 1
    desk.box.close()
    env = {"PATH": f"{newer.parent}:/usr/bin:/bin"}
    desk.box = sandboxes.get("process")(SandboxSpec(base=tmp_path / "base", env=env))
    desk.ctx.sandbox = desk.box
    desk.put("a.py", "a = 1\n")
    assert desk.call("edit", **edit).exit_code == 0


@pytest.mark.parametrize(
    "diff",
    [
        "--- a/a.py\n+++ b/a.py\n@@ -1,9 +1,7 @@\n a = 1\n\n-b = 2\n+b = 3\n",
        "--- a/a.py\n+++ b/a.py\n@@ -40,3 +40,3 @@ def\n a = 1\n \n-b = 2\n+b = 3\n\n\n",
        "Here:\ndiff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -3,0 +3 @@\n-b = 2\n+b = 3",
    ],
)
def test_a_diff_with_wrong_counts_or_places_is_applied_where_its_lines_are(desk, diff):
    desk.put("a.py", "a = 1\n\nb = 2\n")
    assert desk.call("apply_diff", diff=diff).exit_code == 0
    assert desk.get("a.py") == b"a = 1\n\nb = 3\n"


def test_a_diff_cannot_lead_outside_or_into_git(desk):
    for path in ("../out.txt", "/tmp/out.txt", ".git/config", "x/../../out.txt"):
        diff = f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n"
        assert desk.call("apply_diff", diff=diff).exit_code == 1


TWENTY = [f"line {n}" for n in range(1, 21)]


def twenty(end="\n", **other):
    """The file of 20 lines, some of them others: ``_4="new"``."""
    lines = [other.get(f"_{n}", line) for n, line in enumerate(TWENTY, 1)]
    return "".join(line + end for line in lines).encode()


def on_twenty(hunks):
    return f"--- a/t.txt\n+++ b/t.txt\n{hunks}"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("hunks", "after"),
    [
        ("@@ -4,2 +4,2 @@\n line 4\n-line 5\n+new\n", {"_5": "new"}),
        ("@@ -5,2 +5,2 @@\n-line 5\n+new\n line 6\n", {"_5": "new"}),
        ("@@ -5 +5 @@\n-line 5\n+new\n", {"_5": "new"}),
        ("@@ -5 +4,0 @@\n-line 5\n", {"_5": "gone"}),
        ("@@ -1,3 +1,3 @@\n line 8\n-line 9\n+new\n line 10\n", {"_9": "new"}),
        ("@@ -1 +1 @@\n-line 9\n+new\n", {"_9": "new"}),
        ("@@ -19,2 +19,2 @@\n-line 5\n+new\n line 6\n", {"_5": "new"}),
        ("@@\n line 4\n-line 5\n+new\n", {"_5": "new"}),
        (
            "@@ -2,2 +2,2 @@\n line 2\n-line 3\n+new\n@@ -5,2 +5,2 @@\n line 5\n-line 6\n+six\n",
            {"_3": "new", "_6": "six"},
        ),
    ],
)
def test_a_hunk_is_applied_where_its_lines_are(desk, end, hunks, after):
    desk.put("t.txt", twenty(end))
    result = desk.call("apply_diff", diff=on_twenty(hunks))
    assert result.exit_code == 0, result.text
    assert desk.get("t.txt") == twenty(end, **after).replace(f"gone{end}".encode(), b"")


def test_a_hunk_that_only_adds_goes_after_its_line_or_is_refused(desk):
    desk.put("t.txt", twenty())
    assert desk.call("apply_diff", diff=on_twenty("@@ -7,0 +8 @@\n+new\n")).exit_code == 0
    assert desk.get("t.txt") == twenty(_7="line 7\nnew")
    for header in ("@@ -99,0 +99 @@", "@@"):
        result = desk.call("apply_diff", diff=on_twenty(f"{header}\n+new\n"))
        assert (result.exit_code, "does not say where" in result.text) == (1, True)


SIX = {f"_{n}": "same" for n in (2, 5, 8, 11, 14, 17)}


@pytest.mark.parametrize("number", ["-40", "-13", "-7", "-20"])
def test_a_hunk_that_fits_at_several_places_is_refused_with_them(desk, number):
    desk.put("t.txt", twenty(**SIX))
    result = desk.call("apply_diff", diff=on_twenty(f"@@ {number},1 +1,1 @@\n-same\n+new\n"))
    assert result.exit_code == 1
    assert "6 times in t.txt, at lines 2, 5, 8, 11, 14, 17" in result.text
    assert desk.get("t.txt") == twenty(**SIX)


def test_of_several_places_it_is_the_one_that_the_number_says_or_is_plainly_nearest(desk):
    desk.put("t.txt", twenty(**SIX))
    assert desk.call("apply_diff", diff=on_twenty("@@ -8 +8 @@\n-same\n+new\n")).exit_code == 0
    assert desk.get("t.txt") == twenty(**SIX | {"_8": "new"})
    desk.put("t.txt", twenty(_3="same", _18="same"))
    assert desk.call("apply_diff", diff=on_twenty("@@ -5 +5 @@\n-same\n+new\n")).exit_code == 0
    assert desk.get("t.txt") == twenty(_3="new", _18="same")


def test_hunks_out_of_order_are_told(desk):
    desk.put("t.txt", twenty())
    hunks = "@@ -9 +9 @@\n-line 9\n+x\n@@ -3 +3 @@\n-line 3\n+y\n"
    assert "file's order" in desk.call("apply_diff", diff=on_twenty(hunks)).text


@pytest.mark.parametrize(
    ("before", "hunk", "after"),
    [
        (b"a\nb", "@@ -1,2 +1,2 @@\n a\n-b\n+c\n", b"a\nc"),
        (b"a\nb", "@@ -2 +2 @@\n-b\n\\ No newline at end of file\n+c\n", b"a\nc\n"),
        (b"a\nb\n", "@@ -2 +2 @@\n-b\n+c\n\\ No newline at end of file\n", b"a\nc"),
        (b"a\nb", "@@ -2,0 +3 @@\n+c\n", b"a\nb\nc"),
        (b"a\r\nb\nc\r\n", "@@ -1,3 +1,3 @@\n-a\n-b\n+x\n+y\n c\n", b"x\r\ny\nc\r\n"),
        (b"a\r\nb\n", "@@ -1,2 +1,2 @@\n-a\r\n+a\n b\n", b"a\nb\n"),
        (b"\xef\xbb\xbfa\nb\n", "@@ -1,2 +1,2 @@\n-a\n+x\n b\n", b"\xef\xbb\xbfx\nb\n"),
        (b"\xff\nb\n", "@@ -2 +2 @@\n-b\n+c\n", b"\xff\nc\n"),
        (b"a\n", "@@ -1 +0,0 @@\n-a\n", b""),
        (b"a  \nb\n", "@@ -1,2 +1,2 @@\n a\n-b\n+c\n", b"a  \nc\n"),
    ],
)
def test_a_diff_keeps_what_it_does_not_change(desk, before, hunk, after):
    desk.put("t.txt", before)
    result = desk.call("apply_diff", diff=on_twenty(hunk))
    assert result.exit_code == 0, result.text
    assert desk.get("t.txt") == after


def test_a_file_may_come_twice_in_a_diff_be_renamed_or_removed(desk):
    desk.put("t.txt", twenty())
    first, second = ("@@ -3 +3,2 @@\n-line 3\n+3\n+4\n", "@@ -4,2 +4,2 @@\n-4\n+four\n line 4\n")
    assert desk.call("apply_diff", diff=on_twenty(first) + on_twenty(second)).exit_code == 0
    assert desk.get("t.txt") == twenty(_3="3\nfour")
    moved = (
        "diff --git a/t.txt b/u.txt\nsimilarity index 90%\nrename from t.txt\nrename to u.txt\n"
        "--- a/t.txt\n+++ b/u.txt\n@@ -1 +1 @@\n-line 9\n+nine\n"
    )
    assert desk.call("apply_diff", diff=moved).exit_code == 0
    assert desk.get("u.txt") == twenty(_3="3\nfour", _9="nine")
    desk.put("v.txt", "a\r\n")
    gone = "--- a/v.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
    assert desk.call("apply_diff", diff=gone).exit_code == 0
    assert desk.box.files.stat("v.txt") is None
    plain = "--- d/w.txt\n+++ d/w.txt\n@@ -1 +1 @@\n-a\n+b\n"
    desk.put("d/w.txt", "a\n")
    assert desk.call("apply_diff", diff=plain).exit_code == 0
    assert desk.get("d/w.txt") == b"b\n"


FEW = st.lists(st.sampled_from(["a", "b", "", "  a"]), max_size=8)


@given(FEW, FEW, st.integers(0, 3), st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n"]))
@example(["b"], ["a", "b"], 0, False, False, "\r\n")
def test_a_right_diff_makes_the_right_file(old, new, around, old_ended, new_ended, end):
    """Whatever stands twice in it: numbers that are right are followed to the line."""
    before, after = (
        TextFile(end.join(lines) + (end if ended and lines else ""))
        for lines, ended in ((old, old_ended), (new, new_ended))
    )
    assume(before.text and before.text != after.text)
    lines = difflib.unified_diff(before.pieces, after.pieces, "a/t", "b/t", n=around)
    marker = "\n\\ No newline at end of file\n"
    diff = "".join(line if line.endswith("\n") else line + marker for line in lines)
    (_, found), *_ = hunks_module._sections(diff)
    assert "".join(hunks_module._applied(before, "t", found)) == after.text


@pytest.mark.parametrize(
    "header",
    [
        "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n",
        "diff --git a/new b/new\nnew file mode 120000\n--- /dev/null\n+++ b/new\n"
        "@@ -0,0 +1 @@\n+nowhere\n\\ No newline at end of file\n",
        "diff --git a/link b/link\ndeleted file mode 120000\n--- a/link\n+++ /dev/null\n"
        "@@ -1 +0,0 @@\n-run.sh\n\\ No newline at end of file\n",
        "diff --git a/link b/link\nindex 1de5659..2bd6c9d 120000\n--- a/link\n+++ b/link\n"
        "@@ -1 +1 @@\n-run.sh\n\\ No newline at end of file\n+other\n"
        "\\ No newline at end of file\n",
    ],
    ids=["mode", "new link", "no link", "another link"],
)
def test_a_diff_of_modes_or_links_changes_nothing(desk, header):
    desk.put("run.sh", "echo\n")
    desk.box.exec("ln -s run.sh link")
    look = "stat -c '%n %a %N' run.sh link new"
    before = desk.box.exec(look).output
    lines = "--- a/run.sh\n+++ b/run.sh\n@@ -1 +1 @@\n-echo\n+echo on\n"
    for diff in (header, lines + header):
        result = desk.call("apply_diff", diff=diff)
        assert result.exit_code == 1
        assert "leave that part out" in result.text
    assert desk.box.exec(look).output == before
    assert desk.get("run.sh") == b"echo\n"
