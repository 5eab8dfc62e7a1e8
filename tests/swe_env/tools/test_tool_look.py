"""Looking: view, search, bash, run_tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from swe_env.tools.ignore import visible
from swe_env.tools.targets import words

MODULE = """\
import os


def top(x):
    return x


class Box:
    @property
    def size(self):
        return 1

    def fill(self):
        def inner():
            return 2

        return inner
"""


def test_a_file_with_its_line_numbers(desk):
    desk.put("pkg/mod.py", MODULE)
    result = desk.call("view", path="pkg/mod.py")
    assert result.exit_code == 0
    lines = result.text.split("\n")
    assert lines[0] == "     1\timport os"
    assert lines[3] == "     4\tdef top(x):"
    assert len(lines) == 17


@pytest.mark.parametrize("view_range", [[4, 5], "[4, 5]"])
def test_a_range(desk, view_range):
    desk.put("mod.py", MODULE)
    text = desk.call("view", path="mod.py", view_range=view_range).text
    assert text == "     4\tdef top(x):\n     5\t    return x"


def test_a_range_to_the_end_and_wrong_ranges(desk):
    desk.put("mod.py", MODULE)
    assert desk.call("view", path="mod.py", view_range=[17, -1]).text.startswith("    17\t")
    assert desk.call("view", path="mod.py", view_range=[10, 99]).exit_code == 0
    assert "17 lines" in desk.call("view", path="mod.py", view_range=[40, 50]).text
    assert desk.call("view", path="mod.py", view_range=[4]).exit_code == 1


@pytest.mark.parametrize(
    ("symbol", "first", "last"),
    [
        ("top", 4, 5),
        ("Box", 8, 17),
        ("Box.size", 9, 11),
        ("size", 9, 11),
        ("Box.fill.inner", 14, 15),
    ],
)
def test_a_symbol(desk, symbol, first, last):
    desk.put("mod.py", MODULE)
    lines = desk.call("view", path="mod.py", symbol=symbol).text.split("\n")
    assert int(lines[0].split("\t")[0]) == first
    assert int(lines[-1].split("\t")[0]) == last


def test_an_unknown_symbol_says_what_is_near(desk):
    desk.put("mod.py", MODULE)
    result = desk.call("view", path="mod.py", symbol="Box.sise")
    assert result.exit_code == 1
    assert "Box.size" in result.text


def test_a_long_file_shows_its_head_and_outline(desk):
    desk.put("long.py", "\n".join(f"def f{n}():\n    return {n}\n" for n in range(500)))
    text = desk.call("view", path="long.py").text
    assert text.startswith("     1\tdef f0():")
    assert "long.py has 1499 lines" in text
    assert "def f150" in text
    assert len(text) < desk.ctx.output_limit


def test_a_folder_two_levels_deep_without_hidden_ones(desk):
    for path in ("a/b/c.py", "a/d.py", ".hidden/x", "z.txt", "a/__pycache__/y.pyc"):
        desk.put(path, "x")
    assert desk.call("view").text == "a/\n  b/\n  d.py\nz.txt"


def test_other_files_than_text(desk):
    desk.put("a.bin", b"\0\1")
    assert "binary file of 2 bytes" in desk.call("view", path="a.bin").text
    desk.put("empty", b"")
    assert desk.call("view", path="empty").text == "empty is empty."
    desk.put("latin.txt", b"caf\xe9\r\nx\r\n")
    assert desk.call("view", path="latin.txt").text == "     1\tcaf�\n     2\tx"


def test_a_missing_path_says_where_such_a_file_is(desk):
    desk.put("deep/down/mod.py", MODULE)
    result = desk.call("view", path="mod.py")
    assert result.exit_code == 1
    assert "deep/down/mod.py" in result.text


def test_search_shows_file_line_and_text(desk):
    desk.put("a.py", "one\ntwo one one\nthree\n")
    desk.put("sub/b.txt", "One\none (x)\n")
    desk.put("c.bin", b"one\0")
    assert desk.call("search", query="one").text == (
        "a.py:1: one\na.py:2: two one one\nsub/b.txt:2: one (x)"
    )
    assert desk.call("search", query="one (x)", path="sub").text == "sub/b.txt:2: one (x)"
    assert (
        desk.call("search", query="^[Oo]ne$", regex="true").text == "a.py:1: one\nsub/b.txt:1: One"
    )
    assert desk.call("search", query="three", path="a.py").text == "a.py:3: three"
    assert desk.call("search", query="three", path=".").text == "a.py:3: three"
    assert desk.call("search", query="One", path="./sub/").text == "sub/b.txt:1: One"
    root = desk.box.workdir
    for folder in (f"{root}/sub", "/testbed/sub/"):
        assert desk.call("search", query="One", path=folder).text == "sub/b.txt:1: One"
    assert desk.call("search", query="three", path=root).text == "a.py:3: three"
    assert desk.call("search", query="nowhere").text == "No line contains 'nowhere'."
    assert desk.call("search", query="(", regex=True).exit_code == 1
    assert desk.call("search", query="x", path="gone").exit_code == 1


def test_search_shows_the_lines_around_as_grep_does(desk):
    desk.put("a.py", "1\n2\nhit\n4\n5\n6\nhit\nhit\n9\n")
    desk.put("b.py", "hit")
    assert desk.call("search", query="hit", context=1).text.splitlines() == [
        *("a.py-2- 2", "a.py:3: hit", "a.py-4- 4", "--"),
        *("a.py-6- 6", "a.py:7: hit", "a.py:8: hit", "a.py-9- 9", "--", "b.py:1: hit"),
    ]


def test_an_outline_of_a_file_and_of_a_folder(desk):
    desk.put("pkg/mod.py", MODULE)
    desk.put("pkg/empty.py", "")
    desk.put("pkg/broken.py", "def f(:\n")
    desk.put("build/gen.py", MODULE)
    desk.put(".gitignore", "build/\n")
    lines = desk.call("outline", path="pkg/mod.py").text.splitlines()
    assert lines[0] == "     4-5     \tdef top"
    assert lines[2] == "     9-11    \t  def size"
    assert desk.call("outline").text.splitlines() == [
        "pkg/broken.py",
        "pkg/empty.py",
        "pkg/mod.py",
        "     4-5     \tdef top",
        "     8-17    \tclass Box",
    ]
    assert desk.call("outline", path="/testbed").text == desk.call("outline").text
    inside = f"{desk.box.workdir}/pkg"
    assert desk.call("outline", path=inside).text == desk.call("outline", path="pkg").text
    assert "no classes or functions" in desk.call("outline", path="pkg/broken.py").text
    assert "Did you mean pkg/mod.py?" in desk.call("outline", path="mod.py").text


def test_names_that_are_no_utf8_can_be_shown(desk):
    desk.call("bash", command=r"printf x > $'bad\xff.txt'")
    for name, arguments in (("view", {}), ("search", {"query": "x"}), ("bash", {"command": "ls"})):
        result = desk.call(name, **arguments)
        result.text.encode()
        assert "bad\ufffd.txt" in result.text


def test_huge_files_are_refused_without_reading_them(desk):
    desk.put("big.py", "")
    os.truncate(f"{desk.box.workdir}/big.py", 2 << 30)
    for name, arguments in (
        ("view", {"path": "big.py"}),
        ("edit", {"path": "big.py", "old_str": "a", "new_str": "b"}),
        ("edit_lines", {"path": "big.py", "first": 1, "last": 1}),
        ("outline", {"path": "big.py"}),
    ):
        began = time.monotonic()
        result = desk.call(name, **arguments)
        assert result.exit_code == 1
        assert "2,147,483,648 bytes" in result.text
        assert time.monotonic() - began < 1
    assert desk.call("search", query="a").exit_code == 0


def test_devices_and_fifos_are_refused_and_do_not_block(desk):
    desk.call("bash", command="mkfifo pipe; ln -s /dev/zero zero; ln -s /etc outside")
    for path in ("pipe", "zero", "outside/passwd", "/dev/zero"):
        for name, arguments in (("view", {}), ("edit", {"old_str": "a", "new_str": "b"})):
            result = desk.call(name, path=path, **arguments)
            assert result.exit_code == 1
            assert result.text.startswith("Error: ")
    assert desk.call("search", query="root").text == "No line contains 'root'."
    result = desk.call("search", query="root", path="pipe")
    assert (result.exit_code, "no regular file" in result.text) == (1, True)


def test_search_caps_and_counts(desk):
    desk.put("a.txt", "hit\n" * 150)
    text = desk.call("search", query="hit").text
    assert text.count("a.txt:") == 100
    assert "50 more lines left out" in text


def test_an_endless_expression_is_told_and_does_not_hold_up_other_threads(desk, monkeypatch):
    monkeypatch.setattr(sys.modules["swe_env.tools.search"], "_SECONDS", 1.0)
    desk.put("a.txt", "x" * 5000)
    answers = []
    caller = threading.Thread(
        target=lambda: answers.append(desk.call("search", query="(x+x+)+y", regex=True))
    )
    caller.start()
    turns = 0
    while caller.is_alive():
        time.sleep(0.01)
        turns += 1
    caller.join()
    assert turns > 10
    assert answers[0].exit_code == 1
    assert "took longer than 1 s" in answers[0].text


PATHS = [
    "a.log",
    "keep.log",
    "build/x",
    "sub/build/x",
    "docs/a.html",
    "docs/b/a.html",
    "gen/a.py",
    "x/gen/a.py",
    "#odd",
    "tmp1",
    "tmpx",
    "foo/bar",
    "foo/a/b/bar",
    "foo/other",
    "local.txt",
    "sub/local.txt",
    "sub/special.log",
    "sub/other.log",
    "build.txt",
]
IGNORES = {
    ".gitignore": "*.log\n/build/\ndocs/*.html\n!keep.log\n**/gen/*.py\n# no\n\\#odd\ntmp[0-9]\n"
    "foo/**/bar\n",
    "sub/.gitignore": "local.txt\n!special.log\n",
    **dict.fromkeys(PATHS, "x"),
}


def test_what_git_ignores_is_left_out(desk):
    for path, text in IGNORES.items():
        desk.put(path, text)
    root = desk.box.workdir
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    listed = ["git", "ls-files", "--others", "--exclude-standard"]
    by_git = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout
    assert {path for path, _ in visible(desk.box.files)} == set(by_git.splitlines())
    assert {path for path, _ in visible(desk.box.files, "sub")} == {
        path for path in by_git.splitlines() if path.startswith("sub/")
    }


def test_bash_keeps_its_folder_and_says_the_exit_code(desk):
    desk.put("d/x.txt", "hello")
    assert desk.call("bash", command="cd d && export A=1").text == "[done, no output]"
    assert desk.call("bash", command="cat x.txt; echo $A").text == "hello1"
    result = desk.call("bash", command="echo bad; false")
    assert (result.text, result.exit_code) == ("bad\n[exit code 1]", 1)
    assert desk.call("bash", command=" ").exit_code == 1


TESTS = """\
from mod import half


def test_good():
    assert half(4) == 2


def test_bad():
    assert half(5) == 2.5
"""


def test_tests_are_summarised_and_the_failed_run_again(desk):
    desk.put("mod.py", "def half(x):\n    return x // 2\n")
    desk.put("tests/test_mod.py", TESTS)
    result = desk.call("run_tests")
    assert result.exit_code == 1
    assert result.text.startswith("1 failed, 1 passed\n\nFAILED tests/test_mod.py::test_bad\n")
    assert "assert 2 == 2.5" in result.text
    desk.put("mod.py", "def half(x):\n    return x / 2\n")
    result = desk.call("run_tests", targets="failed")
    assert (result.text, result.exit_code) == ("1 passed", 0)
    assert desk.call("run_tests", targets="tests/test_mod.py::test_good").text == "1 passed"
    assert "No test failed" in desk.call("run_tests", targets="failed").text


def test_wrong_targets_are_told(desk):
    desk.put("tests/test_mod.py", "def test_x(): pass\n")
    assert "no test file" in desk.call("run_tests", targets="tests/test_gone.py").text
    assert "option" in desk.call("run_tests", targets="--co").text
    result = desk.call("run_tests", targets="tests/test_mod.py::test_gone")
    assert result.exit_code == 1
    assert "test_gone" in result.text
    assert result.text.endswith("no tests ran")
    again = desk.call("run_tests", targets="tests/test_mod.py::test_gone")
    assert again.text == result.text


IDS = """\
import pytest


@pytest.mark.parametrize("text", ["x y-1", "[", "a'b", "plain"])
def test_p(text):
    assert text == "plain"


class TestBox:
    def test_in(self):
        assert True
"""


def test_the_ids_that_it_prints_can_be_given_back(desk):
    desk.put("tests/test_p.py", IDS)
    printed = [
        line.removeprefix("FAILED ")
        for line in desk.call("run_tests").text.splitlines()
        if line.startswith("FAILED ")
    ]
    assert len(printed) == 3
    for test_id in printed:
        result = desk.call("run_tests", targets=test_id)
        assert result.text.startswith(f"1 failed\n\nFAILED {test_id}\n"), test_id
    assert desk.call("run_tests", targets=" ".join(printed)).text.startswith("3 failed")
    assert desk.call("run_tests", targets=printed[:2]).text.startswith("2 failed")
    assert desk.call("run_tests", targets=json.dumps(printed)).text.startswith("3 failed")
    assert desk.call("run_tests", targets=["failed"]).text.startswith("3 failed")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("a.py  b.py::test_x", ["a.py", "b.py::test_x"]),
        ("b.py::t[x y-1] c.py", ["b.py::t[x y-1]", "c.py"]),
        ("b.py::C::t[a[b c] d] 'my tests/c.py'", ["b.py::C::t[a[b c] d]", "my tests/c.py"]),
        ("b.py::t[[-1] c.py::t[a]", ["b.py::t[[-1]", "c.py::t[a]"]),
        ("b.py::t[]-1] c.py", ["b.py::t[]-1]", "c.py"]),
        (r"b.py::t[a\nb'c d] my\ c.py", [r"b.py::t[a\nb'c d]", "my c.py"]),
        ('"b.py::t[x y]"', ["b.py::t[x y]"]),
        ("tests/a[b] c.py", ["tests/a[b]", "c.py"]),
        ("b.py::t[never c.py", ["b.py::t[never", "c.py"]),
    ],
)
def test_targets_are_taken_apart_outside_of_brackets(text, found):
    assert words(text) == found


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("test_in", "Did you mean tests/test_p.py::TestBox::test_in?"),
        ("TestBox::test_inn", "Did you mean tests/test_p.py::TestBox::test_in?"),
        ("test_p[x y-2]", "Did you mean tests/test_p.py::test_p[x y-1]? tests/test_p.py::test_p "),
        ("test_p[zzzzzzzzzzzzzzzzzzz]", "No tests ran. tests/test_p.py::test_p without brackets"),
    ],
)
def test_a_wrong_id_names_a_near_one(desk, target, hint):
    desk.put("tests/test_p.py", IDS)
    desk.ctx.state["failed_tests"] = ("tests/test_p.py::test_p[x y-1]",)
    assert hint in desk.call("run_tests", targets=f"tests/test_p.py::{target}").text
    assert desk.call("run_tests", targets="failed").text.startswith("1 failed")


def test_a_file_that_cannot_be_imported_is_shown(desk):
    desk.put("tests/test_mod.py", "import no_such_module\n")
    result = desk.call("run_tests")
    assert "ERROR tests/test_mod.py" in result.text
    assert "no_such_module" in result.text
