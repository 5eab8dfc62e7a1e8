"""Finds a test's outcome by the id that a benchmark's row gives it, not always the test's own.

Rows made from printed logs name some tests by what a log parser kept of their ids: SWE-bench's cut
them at the first blank, some of them shorten a path in the parameter, R2E-Gym leaves the file out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from swe_env.grading.runs import worst
from swe_env.types import Outcome

_OPTION = re.compile(r"^(.*?)\[(/.*)\]$", re.DOTALL)


def outcomes_of(wanted: Iterable[str], outcomes: Mapping[str, str]) -> dict[str, str]:
    """Each wanted id → its outcome, `Outcome.MISSING` where nothing reported under it.

    An id that several tests have has the worst of their outcomes.
    """
    found: dict[str, str] = {}
    forms: dict[Callable[[str], str], dict[str, str]] = {}
    for test in wanted:
        if test in outcomes:
            found[test] = outcomes[test]
            continue
        form = _form(test)
        if form is not None and form not in forms:
            forms[form] = _renamed(outcomes, form)
        found[test] = forms[form].get(test, Outcome.MISSING) if form else Outcome.MISSING
    return found


def _renamed(outcomes: Mapping[str, str], form: Callable[[str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for test, outcome in outcomes.items():
        name = form(test)
        found[name] = worst(found.get(name, outcome), outcome)
    return found


def _form(test: str) -> Callable[[str], str] | None:
    """What would have made this id of a whole one; None where it looks whole."""
    if test.count("[") > test.count("]"):
        return first_word
    if _OPTION.match(test):
        return short_option
    if "::" not in test and "/" not in test and not test.endswith(".py"):
        return without_file
    return None


def first_word(test: str) -> str:
    """The id up to its first blank, as a parser that splits lines has it."""
    return test.split(maxsplit=1)[0] if test.strip() else test


def short_option(test: str) -> str:
    """The id with only the last part of a path that is its parameter."""
    word = first_word(test)
    match = _OPTION.match(word)
    if match is None or match[2].startswith("//") or "*" in match[2]:
        return word
    return f"{match[1]}[/{match[2].rpartition('/')[2]}]"


def without_file(test: str) -> str:
    """The id without its file, its parts joined by dots."""
    return ".".join(test.split("::")[1:]) if "::" in test else test
