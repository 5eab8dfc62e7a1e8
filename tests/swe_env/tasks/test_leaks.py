"""A text that holds a line of the answer or the name of a hidden test is found out."""

from __future__ import annotations

from swe_env.tasks.leaks import leaked

PATCH = """\
diff --git a/shop.py b/shop.py
--- a/shop.py
+++ b/shop.py
@@ -1,4 +1,5 @@
-    return amount * (100 + discount) / 100
+    # percent of the whole
+    return amount * (100 - discount) / 100
+    pass
"""


def test_an_added_line_is_a_leak_however_it_is_spaced():
    found = ["return amount * (100 - discount) / 100"]
    assert leaked("It should `return amount*(100-discount)/100`.", PATCH) == found
    assert leaked("return amount *\n    (100 - discount) / 100", PATCH) == found
    assert leaked("Say # percent of the whole", PATCH) == ["# percent of the whole"]


def test_what_was_wrong_before_and_short_lines_are_none():
    assert leaked("return amount * (100 + discount) / 100 and then pass", PATCH) == []
    assert leaked("+++ b/shop.py", PATCH) == []


def test_names_of_hidden_tests_are():
    tests = ["tests/test_shop.py::TestTotal::test_discount[10]"]
    assert leaked("See test_discount.", PATCH, tests) == ["test_discount"]
    assert leaked("See the discount.", PATCH, tests) == []
