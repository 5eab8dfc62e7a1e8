from __future__ import annotations

import pytest

from agents.selection import patch_key
from tests.agents.made import diff

RETURN = diff("    return a", "    return b")


@pytest.mark.parametrize(
    "same",
    [
        diff("    return a", "    return b  # because"),
        diff("    return a", "    # because\n\n    return  (b)"),
        diff("    return a", "    return b").replace("diff --git", "index 1..2\ndiff --git", 0),
        diff("    # old remark\n    return a", "    return b", line=9),
    ],
)
def test_looks_do_not_count(same):
    assert patch_key(same) == patch_key(RETURN)


@pytest.mark.parametrize(
    "other",
    [
        diff("    return a", "    return c"),
        diff("    return a", "        return b"),
        diff("    return a", "    return b", line=20),
        diff("    return a", "    return b", path="pkg/other.py"),
        diff("    return a", "    return 'b'"),
        RETURN + diff("x", "y", path="README"),
    ],
)
def test_meaning_place_and_indentation_count(other):
    assert patch_key(other) != patch_key(RETURN)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("    elif x > 1:", "    elif  x>1 :  # note"),
        ("    else:", "    else:  # note"),
        ("@cache", "@cache  # note"),
        ("    except KeyError:", "    except KeyError :"),
        ("        b=2, *c)", "        b = 2, *c)  # note"),
        ("s = 'it'", 's = "it"'),
    ],
)
def test_fragments_are_compared_by_meaning_too(left, right):
    old = "    old = 1"
    assert patch_key(diff(old, left)) == patch_key(diff(old, right))
    assert patch_key(diff(old, left)) != patch_key(diff(old, left.replace("x", "y") + "\n    z"))


def test_the_order_of_files_does_not_count():
    one, two = diff("a = 1", "a = 2"), diff("b = 1", "b = 2", path="pkg/two.py")
    assert patch_key(one + two) == patch_key(two + one)


def test_a_patch_that_changes_nothing_has_no_key():
    assert patch_key("") == patch_key(" \n") == ""
    assert patch_key(diff("    x = 1", "    x = 1  # same")) == ""


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("    say  hello  to", "    say hello to", "pkg/mod.py"),  # inside a string, maybe
        ('TEXT = """\n# one\n"""', 'TEXT = """\n# two\n"""', "pkg/mod.py"),
        ("        cc -c x.c", "\tcc -c x.c", "Makefile"),
        ("a: b  c", "a: b c", "conf.yaml"),
    ],
)
def test_a_change_of_blanks_that_may_mean_something_has_a_key(old, new, path):
    assert patch_key(diff(old, new, path=path))
    assert patch_key(diff(old, new, path=path)) != patch_key(diff(new, old, path=path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # one", "    # two\n"),
        ("    f(a,b)  # one", "    f(a, b)"),
        ("    else :", "    else:"),
    ],
)
def test_comments_and_formatting_of_whole_statements_have_none(old, new):
    assert patch_key(diff(old, new)) == ""


def test_other_files_keep_comments_but_not_runs_of_blanks():
    def yaml(text: str) -> str:
        return patch_key(diff("a: 1", text, path="conf.yaml"))

    assert yaml("a:  2 ") == yaml("a: 2")
    assert yaml("  a: 2") != yaml("a: 2")


def test_deleted_renamed_and_broken_diffs():
    rename = "diff --git a/x.py b/y.py\nsimilarity index 100%\nrename from x.py\nrename to y.py\n"
    other = rename.replace("y.py", "z.py")
    assert patch_key(rename)
    assert patch_key(rename) != patch_key(other)
    assert patch_key("not a diff") == patch_key("not  a diff\n") != patch_key("another")
    broken = "--- a/x.py\n+++ b/x.py\n@@ -1,9 +1,9 @@\n-a\n"
    assert patch_key(broken)
