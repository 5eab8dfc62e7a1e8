"""What is remembered of a verdict, and what is not."""

from __future__ import annotations

import pytest

from swe_env import sandbox as sandboxes
from swe_env.grading.cache import grade_once
from swe_env.sandbox import Limits

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
HANG = "--- a/shop.py\n+++ b/shop.py\n@@ -1,2 +1,3 @@\n+import time; time.sleep(60)\n {}\n \n"


class Counted:
    """The process sandbox, counting its starts."""

    def __init__(self) -> None:
        self.starts = 0

    def available(self) -> str:
        return ""

    def __call__(self, spec):
        self.starts += 1
        return sandboxes.get("process")(spec)


def test_the_same_question_is_answered_once_and_another_anew(shop_task):
    box = Counted()
    first = grade_once(shop_task, "", sandbox=box, timeout=60)
    first.fail_to_pass.clear()
    again = grade_once(shop_task, "", sandbox=box, timeout=60)
    assert again.fail_to_pass
    assert first.seconds > 0 == again.seconds  # no tests were run for it
    assert box.starts == 1
    grade_once(shop_task, "", sandbox=box, timeout=61)
    grade_once(shop_task, "", sandbox=box, timeout=60, limits=Limits(processes=100))
    assert box.starts == 3
    other = Counted()
    grade_once(shop_task, "", sandbox=other, timeout=60)
    assert other.starts == 1


def test_a_run_that_timed_out_is_made_again(shop_task):
    box = Counted()
    patch = HANG.format('"""A small shop."""')
    for starts in (1, 2):
        assert "timed out" in grade_once(shop_task, patch, sandbox=box, timeout=2).error
        assert box.starts == starts
