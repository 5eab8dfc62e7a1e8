import difflib

from hypothesis import given
from hypothesis import strategies as st

from agents.policies.goldedits import enclosing, gold_edits

# Few distinct lines, so that passages repeat and must grow to name one place.
line = st.sampled_from(["a", "  a", "b", "", "    return 1", "c = a", "\tx", "é\r", "a\x0cb"])
texts = st.lists(line, min_size=1, max_size=14).map(lambda ls: "".join(f"{x}\n" for x in ls))


def unified(old, new, path="pkg/a.txt"):
    def parts(text):
        pieces = text.split("\n")
        return [f"{p}\n" for p in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])

    lines = difflib.unified_diff(parts(old), parts(new), f"a/{path}", f"b/{path}", n=3)
    return "".join(x if x.endswith("\n") else f"{x}\n\\ No newline at end of file\n" for x in lines)


def apply(edits, text):
    for edit in edits:
        assert text.count(edit.old_str) == 1, "the edit tool would refuse this"
        assert edit.old_str != edit.new_str
        text = text.replace(edit.old_str, edit.new_str)
    return text


@given(old=texts, new=texts, bare=st.booleans())
def test_edits_make_exactly_the_patched_file(old, new, bare):
    old, new = (old.removesuffix("\n"), new.removesuffix("\n")) if bare else (old, new)
    if old == new:
        return
    edits = gold_edits(unified(old, new), {"pkg/a.txt": old})
    if edits is not None:
        assert apply(edits, old) == new


def test_a_changed_line_is_one_edit_of_that_line():
    old = "def f(a):\n    if a > 1:\n        return a\n    return -a\n"
    new = old.replace("a > 1", "a >= 1")
    (edit,) = gold_edits(unified(old, new, "m.py"), {"m.py": old})
    assert (edit.old_str, edit.new_str, edit.line) == ("    if a > 1:", "    if a >= 1:", 2)


def test_a_repeated_line_grows_until_it_names_one_place():
    old = "def f():\n    return 1\n\n\ndef g():\n    return 1\n"
    new = "def f():\n    return 1\n\n\ndef g():\n    return 2\n"
    (edit,) = gold_edits(unified(old, new, "m.py"), {"m.py": old})
    assert edit.old_str == "def g():\n    return 1"


def test_two_places_are_two_edits_from_the_bottom_up():
    old = "".join(f"x{k} = {k}\n" for k in range(20))
    new = old.replace("x2 = 2", "x2 = 0").replace("x15 = 15", "x15 = 0\ny = 1")
    edits = gold_edits(unified(old, new, "m.py"), {"m.py": old})
    assert [e.line for e in edits] == [16, 3]
    assert apply(edits, old) == new


def test_changes_that_only_parse_together_are_one_edit():
    old = "def f():\n    a = (1,\n         2)\n    return a\n"
    new = "def f():\n    a = [1,\n         2]\n    return a\n"
    edits = gold_edits(unified(old, new, "m.py"), {"m.py": old})
    assert len(edits) == 1
    assert apply(edits, old) == new
    far_old = "x = (\n" + "".join(f"    {k},\n" for k in range(12)) + ")\n"
    far_new = far_old.replace("(", "[").replace(")", "]")
    (edit,) = gold_edits(unified(far_old, far_new, "m.py"), {"m.py": far_old})
    assert apply([edit], far_old) == far_new


def test_a_new_file_is_an_edit_with_empty_old_str():
    patch = "--- /dev/null\n+++ b/n.py\n@@ -0,0 +1,2 @@\n+a = 1\n+b = 2\n"
    (edit,) = gold_edits(patch, {})
    assert (edit.path, edit.old_str, edit.new_str) == ("n.py", "", "a = 1\nb = 2\n")
    (edit,) = gold_edits(patch + "\\ No newline at end of file\n", {})
    assert edit.new_str == "a = 1\nb = 2"


def test_what_edits_cannot_do_is_none():
    old = "a\nb\n"
    gone = "--- a/n.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n"
    assert gold_edits(gone, {"n.py": old}) is None
    assert gold_edits(unified("a\nb", "a\nc\n"), {"pkg/a.txt": "a\nb"}) is None
    assert gold_edits(unified("a\n", "b\n"), {}) is None
    mode = "diff --git a/m b/m\nold mode 100644\nnew mode 100755\n"
    assert gold_edits(mode + unified("a\n", "b\n", "m"), {"m": "a\n"}) is None


def test_enclosing_names_functions_and_methods():
    text = "import x\n\n\n@deco\ndef f():\n    return 1\n\n\nclass C:\n    y = 1\n\n"
    text += "    def m(self):\n        def inner():\n            return 2\n"
    assert enclosing(text, 4) == ("f", 4, 6)
    assert enclosing(text, 14) == ("C.m", 12, 14)
    assert enclosing(text, 10) is None
    assert enclosing(text, 1) is None
    assert enclosing("def (", 1) is None
