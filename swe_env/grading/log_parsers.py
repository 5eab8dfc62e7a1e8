"""Reads outcomes from printed logs as SWE-bench's parsers of the same names do.

Only for commands that no runner with a channel can run: what is printed can be forged by whatever
runs. Each parser is one pass over the lines that can matter, found by one regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from swe_env.types import Outcome

Parser = Callable[[str], dict[str, str]]

_STATUS = {
    "FAILED": Outcome.FAILED,
    "PASSED": Outcome.PASSED,
    "SKIPPED": Outcome.SKIPPED,
    "ERROR": Outcome.ERROR,
    "XFAIL": Outcome.XFAIL,
}
_NAMES = "|".join(_STATUS)
_SUMMARY = re.compile(rf"^(?:{_NAMES})[^\n]*", re.MULTILINE)
"""A line of pytest's short summary, or one that starts like it."""
_COUNT = re.compile(r"\[\d+\]")
_COLOUR = re.compile(r"\[\d+m")
_CONTROL = dict.fromkeys(range(1, 32))
_WORD = re.compile(_NAMES)
_OPTION = re.compile(r"(.*?)\[(.*)\]")


def _lines_with_status(log: str) -> Iterator[str]:
    """Each line that has a status word anywhere, once."""
    found = _WORD.search(log)
    while found:
        end = log.find("\n", found.end())
        end = len(log) if end < 0 else end
        yield log[log.rfind("\n", 0, found.start()) + 1 : end]
        found = _WORD.search(log, end)


def _pairs(log: str) -> list[tuple[str, str]]:
    """(status word, test id) of each summary line, as a parser that splits at blanks sees them."""
    found = []
    for line in _SUMMARY.findall(log):
        words = (line.replace(" - ", " ") if line.startswith("FAILED") else line).split(None, 2)
        if len(words) < 2 or (words[0] == "SKIPPED" and _COUNT.fullmatch(words[1])):
            continue
        found.append((words[0], words[1]))
    return found


def _status(word: str) -> str:
    """An outcome; a line that only starts with a status word has one of its own."""
    return _STATUS.get(word, word)


def pytest(log: str) -> dict[str, str]:
    """Pytest's short summary (``-rA``)."""
    return {test: _status(word) for word, test in _pairs(log)}


def pytest_options(log: str) -> dict[str, str]:
    """As `pytest`, with paths in parameters shortened to their last part."""
    found = {}
    for word, test in _pairs(log):
        match = _OPTION.search(test)
        if match:
            main, option = match.groups()
            if option.startswith("/") and not option.startswith("//") and "*" not in option:
                option = "/" + option.rpartition("/")[2]
            test = f"{main}[{option}]"
        found[test] = _status(word)
    return found


def pytest_v2(log: str) -> dict[str, str]:
    """Later and earlier forms: whole ids in the summary, or the status at a line's end."""
    found: dict[str, str] = {}
    for line in _lines_with_status(log):
        if "[" in line:
            line = _COLOUR.sub("", line)
        if not line.isprintable():
            line = line.translate(_CONTROL)
        if line.startswith(tuple(_STATUS)):
            words = (line.split(" - ", 1)[0] if line.startswith("FAILED") else line).split()
            summed = len(words) >= 2 and words[0] == "SKIPPED" and _COUNT.fullmatch(words[1])
            if len(words) >= 2 and not summed:
                found[" ".join(words[1:])] = _status(words[0])
        elif line.endswith(tuple(_STATUS)):
            words = line.split()
            if len(words) >= 2:
                found[" ".join(words[:-1])] = _status(words[-1])
    return found


def matplotlib(log: str) -> dict[str, str]:
    """As `pytest`, with the names of mouse buttons as the numbers that ids have."""
    return pytest(log.replace("MouseButton.LEFT", "1").replace("MouseButton.RIGHT", "3"))


def seaborn(log: str) -> dict[str, str]:
    """Pytest's summary, or ``path::test PASSED`` lines."""
    found = {}
    for line in _lines_with_status(log):
        words = line.split(None, 2)
        if len(words) < 2:
            continue
        if line.startswith("FAILED"):
            found[words[1]] = Outcome.FAILED
        elif " PASSED " in line:
            if words[1] == "PASSED":
                found[words[0]] = Outcome.PASSED
        elif line.startswith("PASSED"):
            found[words[1]] = Outcome.PASSED
    return found


_SYMPY_FAILED = re.compile(r"_* (.*)\.py:(.*) _*")
_SYMPY = re.compile(r"^[^\S\n]*(test_\S*)[^\n]* (E|F|ok)[^\S\n]*$", re.MULTILINE)
_SYMPY_STATUS = {"E": Outcome.ERROR, "F": Outcome.FAILED, "ok": Outcome.PASSED}


def sympy(log: str) -> dict[str, str]:
    """Sympy's ``bin/test --verbose``: ``test_x ok``, ``F`` or ``E``."""
    found = {f"{path}.py:{test}": Outcome.FAILED for path, test in _SYMPY_FAILED.findall(log)}
    return found | {test: _SYMPY_STATUS[word] for test, word in _SYMPY.findall(log)}


_DJANGO_BROKEN = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(.*?)\s\.\.\.\sTesting\ against\ Django\ installed\ in\ (?s:.*?)\ silenced\)\.\nok$",
        r"^(.*?)\s\.\.\.\sInternal\ Server\ Error:\ \/.*\/\nok$",
        r"^(.*?)\s\.\.\.\sSystem check identified no issues \(0 silenced\)\nok$",
    )
)
"""Results that something else printed into."""
_DJANGO_OK = (" ... ok", " ... OK", " ...  OK")
_DJANGO_VERSION = "--version is equivalent to version"
_DJANGO_APPLY = "Applying sites.0002_alter_domain_unique...test_no_migrations"


def django(log: str) -> dict[str, str]:
    """Django's ``runtests.py --verbosity 2``."""
    found: dict[str, str] = {}
    before: str | None = None
    for line in map(str.strip, log.split("\n")):
        if _DJANGO_VERSION in line:
            found[_DJANGO_VERSION] = Outcome.PASSED
        if " ... " in line:
            before = line.split(" ... ", 1)[0]
        for ending in _DJANGO_OK:
            if line.endswith(ending):
                whole = line
                if line.startswith(_DJANGO_APPLY):
                    whole = line.split("...", 1)[-1].strip()
                found[whole.rsplit(ending, 1)[0]] = Outcome.PASSED
                break
        if " ... skipped" in line:
            found[line.split(" ... skipped", 1)[0]] = Outcome.SKIPPED
        for word, outcome in (("FAIL", Outcome.FAILED), ("ERROR", Outcome.ERROR)):
            if line.endswith(f" ... {word}"):
                found[line.split(f" ... {word}", 1)[0]] = outcome
            if line.startswith(f"{word}:") and len(line.split()) > 1:
                found[line.split()[1]] = outcome
        if line.startswith("ok") and before is not None:
            found[before] = Outcome.PASSED
    for pattern in _DJANGO_BROKEN:
        found |= {match.group(1): Outcome.PASSED for match in pattern.finditer(log)}
    return found


PARSERS: dict[str, Parser] = {
    "parse_log_pytest": pytest,
    "parse_log_pytest_options": pytest_options,
    "parse_log_pytest_v2": pytest_v2,
    "parse_log_django": django,
    "parse_log_matplotlib": matplotlib,
    "parse_log_seaborn": seaborn,
    "parse_log_sympy": sympy,
}
"""Parsers by SWE-bench's names."""
_SAME = {
    "parse_log_pytest": (
        "astroid",
        "flask",
        "marshmallow",
        "pvlib",
        "pyvista",
        "sqlfluff",
        "xarray",
    ),
    "parse_log_pytest_options": ("pydicom", "requests", "pylint"),
    "parse_log_pytest_v2": ("astropy", "scikit", "sphinx"),
}
PARSERS |= {f"parse_log_{repo}": PARSERS[name] for name, repos in _SAME.items() for repo in repos}
