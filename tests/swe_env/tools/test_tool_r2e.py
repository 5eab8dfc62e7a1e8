"""R2E's preset: the arguments and result lines that a model trained on that scaffold expects."""

from __future__ import annotations

import pytest

from swe_env.tools import toolset

MODULE = "import os\n\n\ndef top(x):\n    return x\n"
LONG = "class Box:\n" + "".join(
    f"    def f{n}(self):\n        a = {n}\n        b = a\n        c = b\n        return c\n\n"
    for n in range(40)
)


@pytest.fixture
def r2e(desk):
    desk.tools = toolset("r2e")
    return desk


def edit(desk, command, path="/testbed/a.py", **arguments):
    return desk.call("file_editor", command=command, path=path, **arguments)


def bash(desk, cmd):
    return desk.call("execute_bash", cmd=cmd)


def test_view_numbers_lines_under_the_scaffolds_heading(r2e):
    r2e.put("a.py", MODULE)
    assert edit(r2e, "view").text == (
        "Execution output of [file_editor]:\n"
        "Here's the result of running `cat -n` on the file: /testbed/a.py:\n"
        "     1 import os\n     2 \n     3 \n     4 def top(x):\n     5     return x"
    )
    text = edit(r2e, "view", path="./a.py", view_range="[4, -1]").text
    assert text.endswith("./a.py:\n     4 def top(x):\n     5     return x")
    assert "must be in [1, 5]" in edit(r2e, "view", view_range=[9, 12]).text


def test_a_long_python_file_is_condensed_with_its_own_line_numbers(r2e):
    r2e.put("a.py", LONG)
    text = edit(r2e, "view").text
    assert "Here is a condensed view for file: /testbed/a.py;" in text
    assert "     8     def f1(self):\n     9 ... eliding lines 9-12 ...\n    13 \n" in text
    for whole in ({"concise": "False"}, {"view_range": [1, 100]}):
        assert "    11         c = b\n" in edit(r2e, "view", **whole).text
    r2e.put("short.py", LONG[:400])
    assert "eliding" in edit(r2e, "view", "short.py", concise="True").text


def test_files_of_every_kind_and_folders_are_viewed(r2e):
    r2e.put("docs/a.rst", "Title\n")
    r2e.put("docs/b/c/d.txt", "deep\n")
    r2e.put(".hidden/x", "")
    assert "     1 Title" in edit(r2e, "view", path="/testbed/docs/a.rst").text
    assert edit(r2e, "view", path="/testbed").text.splitlines()[1:] == [
        "Here's the files and directories up to 2 levels deep in /testbed, excluding hidden:",
        "/testbed",
        "/testbed/docs",
        "/testbed/docs/a.rst",
        "/testbed/docs/b",
    ]


def test_a_long_view_says_that_it_is_clipped(r2e):
    r2e.put("a.txt", "word word word\n" * 3000)
    text = edit(r2e, "view", path="a.txt").text
    assert "<response clipped><NOTE>" in text
    assert "of 3000 lines are shown" in text
    assert len(text) < 11_000


def test_create_and_undo(r2e):
    result = edit(r2e, "create", file_text="a = 1\n")
    assert result.text == (
        "Execution output of [file_editor]:\nFile created at /testbed/a.py. "
        "Here's the result of running `cat -n` on /testbed/a.py:\n     1\ta = 1"
    )
    assert "ERROR: File already exists at: /testbed/a.py. Cannot overwrite with 'create'." in (
        edit(r2e, "create", file_text="b").text
    )
    assert (
        edit(r2e, "undo_edit")
        .text.splitlines()[1]
        .startswith("Last edit to /testbed/a.py undone successfully.")
    )
    assert r2e.box.files.stat("a.py") is None


def test_str_replace_shows_a_snippet(r2e):
    r2e.put("a.py", MODULE)
    result = edit(r2e, "str_replace", old_str="return x", new_str="return x + 1")
    assert result.text == (
        "Execution output of [file_editor]:\nThe file /testbed/a.py has been edited. "
        "Here's the result of running `cat -n` on a snippet of /testbed/a.py:\n"
        "     1\timport os\n     2\t\n     3\t\n     4\tdef top(x):\n     5\t    return x + 1"
    )
    assert edit(r2e, "str_replace", old_str="import os\n\n\n").exit_code == 0
    assert r2e.get("a.py") == b"def top(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"old_str": "nowhere"}, "ERROR: No occurrences of 'nowhere' found in /testbed/a.py for"),
        ({"old_str": "x"}, "ERROR: Multiple occurrences of 'x' found in /testbed/a.py."),
        ({}, "ERROR: Missing required parameter 'old_str' for 'str_replace'."),
        ({"old_str": "top(x)", "new_str": "top(x"}, "has introduced new syntax error(s)."),
        ({"old_str": "top", "new_str": "top"}, "ERROR: nothing to do"),
    ],
)
def test_what_cannot_be_replaced_is_an_error_line(r2e, arguments, said):
    r2e.put("a.py", MODULE)
    result = edit(r2e, "str_replace", **arguments)
    assert result.exit_code == 1
    assert said in result.text
    assert r2e.get("a.py").decode() == MODULE


def test_insert_after_a_line_and_undo_each_file_by_itself(r2e):
    r2e.put("a.py", MODULE)
    r2e.put("b.py", MODULE)
    result = edit(r2e, "insert", insert_line="1", new_str="import re")
    assert "on a snippet of the edited file:\n     1\timport os\n     2\timport re\n" in result.text
    edit(r2e, "insert", path="b.py", insert_line=0, new_str="# top")
    assert edit(r2e, "undo_edit").exit_code == 0
    assert r2e.get("a.py").decode() == MODULE
    assert r2e.get("b.py").decode() == f"# top\n{MODULE}"
    assert "ERROR:" in edit(r2e, "undo_edit").text
    assert "Must be in [0, 5]" in edit(r2e, "insert", insert_line=9, new_str="x").text


def test_wrong_paths(r2e):
    r2e.put("pkg/mod.py", MODULE)
    assert "ERROR: The path '/testbed/mod.py' does not exist." in (
        edit(r2e, "view", path="/testbed/mod.py").text
    )
    assert "Only 'view' can be used on directories." in edit(r2e, "insert", path="pkg").text
    for path in ("/etc/passwd", "../x", "/testbed/../etc/passwd"):
        assert edit(r2e, "view", path=path).exit_code == 1


def test_bash_shows_exit_code_and_output(r2e):
    assert bash(r2e, "echo out; echo err >&2").text == (
        "Exit code: 0\nExecution output of [execute_bash]:\n[STDOUT]\n\nout\nerr\n\n[STDERR]\n"
    )
    result = bash(r2e, "echo out; false")
    assert result.exit_code == 1
    assert result.text.startswith(
        "Exit code: Error: Exit code 1\nExecution output of [execute_bash]:\n"
        "Error executing command:\n\n[STDOUT]\n\nout\n"
    )
    assert "[STDOUT]\n\nred" in r2e.call("execute_bash", command=r"printf '\e[31mred\e[0m'").text


def test_bash_polls_feeds_and_interrupts_as_the_scaffold_promises(r2e):
    r2e.ctx.command_timeout = 0.4
    result = bash(r2e, "echo on; read line; echo got $line; sleep 30")
    assert result.exit_code == -1
    assert result.text.startswith("Exit code: -1\n")
    assert "[STDOUT]\n\non\n" in result.text
    assert "still running" in result.text
    assert "got ls -l" in bash(r2e, "ls -l").text
    assert "still running" in bash(r2e, "").text
    assert bash(r2e, "ctrl+c").exit_code == 130
    assert "ERROR: no command is running" in bash(r2e, "").text
    assert "[STDOUT]\n\non\n" in bash(r2e, "echo on").text


def test_bash_keeps_forty_lines_at_both_ends(r2e):
    text = bash(r2e, "seq 1 200").text
    assert "\n40\n" + "-" * 50 in text
    assert "<Observation truncated in middle for saving context>\n[120 lines left out]" in text
    assert "\n161\n" in text
    assert "\n160\n" not in text


def test_search_counts_in_folders_and_shows_lines_in_files(r2e):
    r2e.put("a.py", "x = 1\ny = x\n")
    r2e.put("pkg/b.py", "x = 2\n")
    r2e.put("notes.txt", "x = 3\n")
    r2e.put(".hidden/c.py", "x = 4\n")
    root = r2e.box.workdir
    search = r2e.tools.names[2]
    assert r2e.call(search, search_term="x").text == (
        f'Execution output of [search]:\nFound 3 matches for "x" in {root}:\n'
        f'./a.py (2 matches)\n./pkg/b.py (1 matches)\nEnd of matches for "x" in {root}'
        " Other files than Python do: python_only=False searches them."
    )
    assert "./notes.txt (1 matches)" in (
        r2e.call(search, search_term="x", path="/testbed", python_only="False").text
    )
    assert r2e.call(search, search_term="x", path="/testbed/a.py").text.endswith(
        f'Matches for "x" in {root}/a.py:\n1:x = 1\n2:y = x'
    )
    assert r2e.call(search, search_term=r"= 1\|y", path="a.py").text.endswith("1:x = 1\n2:y = x")
    assert f'No matches found for "zzz" in {root}' in r2e.call(search, search_term="zzz").text
    assert r2e.call(search, search_term="x", path="gone").exit_code == 1


def test_search_asks_to_narrow_when_too_many_files_match(r2e):
    for n in range(101):
        r2e.put(f"m{n}.py", "x\n")
    assert "More than 100 files matched" in r2e.call("search", search_term="x").text


@pytest.mark.parametrize("name", ["finish", "submit"])
def test_finish_by_both_of_its_names(r2e, name):
    result = r2e.call(name, command="submit", result="done")
    assert (result.text, result.submitted) == ("<<< Finished >>>", True)


def test_names_of_later_versions_of_the_scaffold_are_taken(r2e):
    r2e.put("a.py", MODULE)
    arguments = {"command": "view", "path": "/testbed/a.py", "enable_linting": "true"}
    assert r2e.call("str_replace_editor", **arguments).exit_code == 0
