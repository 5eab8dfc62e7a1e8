"""Does a text tell a patch? What statements are checked for, whoever wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHORT = 12
"""Characters without white space; shorter lines (``else:``, ``return x``) say nothing by being
there."""


def leaked(text: str, patch: str, tests: Iterable[str] = ()) -> list[str]:
    """Lines that a patch adds, and names of hidden tests, which stand in a text.

    White space is not compared, so a line wrapped or indented otherwise is found too.

    Args:
        text: a statement.
        patch: unified diff of the answer.
        tests: ids of hidden tests.
    """
    plain = _squeezed(text)
    added = [line[1:] for line in patch.split("\n") if line[:1] == "+" and line[:4] != "+++ "]
    lines = [line.strip() for line in added if len(_squeezed(line)) >= _SHORT]
    found = [line for line in lines if re.search(r"\w", line) and _squeezed(line) in plain]
    names = {test.rpartition("::")[2].partition("[")[0] for test in tests if "::" in test}
    told = sorted(name for name in names if re.search(rf"\b{re.escape(name)}\b", text))
    return [*dict.fromkeys(found), *told]


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)
