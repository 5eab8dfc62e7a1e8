"""Rows of R2E-Gym: commits as tasks, their tests in the row, their repository in an image."""

from __future__ import annotations

import re
from typing import Any

from swe_env.repos.patches import new_file_diff
from swe_env.tasks.swebench.fields import Fields
from swe_env.types import Image, Source, Task

_OWNERS = {
    "aiohttp": "aio-libs/aiohttp",
    "bokeh": "bokeh/bokeh",
    "coveragepy": "nedbat/coveragepy",
    "datalad": "datalad/datalad",
    "numpy": "numpy/numpy",
    "orange3": "biolab/orange3",
    "pandas": "pandas-dev/pandas",
    "pillow": "python-pillow/Pillow",
    "pyramid": "Pylons/pyramid",
    "scrapy": "scrapy/scrapy",
    "sympy": "sympy/sympy",
    "tornado": "tornadoweb/tornado",
}
_FOLDER = "r2e_tests"
"""Where the hidden tests are put for grading."""
_COMMAND = ".venv/bin/python -W ignore -m pytest -rA"
_COLOUR = re.compile(r"\x1b\[\d+m")
_ISSUE = re.compile(r"\[ISSUE\]\s*(.*?)\s*\[/ISSUE\]", re.DOTALL)
_TEST_PARTS = frozenset({"test", "tests", "Test", "Tests"})
_KNOWN = (
    "repo_name", "commit_hash", "docker_image", "problem_statement", "expected_output_json",
    "parsed_commit_content", "execution_result_content", "prompt", "relevant_files",
    "modified_files", "modified_entity_summaries", "instance_id",
)  # fmt: skip
"""Fields that are read, or tell the answer and stay out of the metadata."""


def r2e(row: Fields, prefer: str) -> Task:
    """A row of R2E-Gym.

    The tests to fix are those that the commit made pass, the tests to keep those that passed
    before; where the row holds no run of the old commit, every test that should pass is to fix.
    R2E's own reward also wants the failing tests to go on failing; that is not asked for here.
    """
    if prefer == "recipe":
        raise row.wrong("docker_image", "R2E-Gym has images only: leave out environment=recipe")
    name, commit = row.text("repo_name"), row.text("commit_hash", "")
    image = row.text("docker_image")
    commit = commit or image.rpartition(":")[2]
    passing = _passing(row)
    before = _before(row)
    fixed = tuple(test for test in passing if test not in before)
    if not fixed:
        raise row.wrong("expected_output_json", "no test passes that did not pass before")
    parsed = row.mapping("parsed_commit_content")
    repo = _OWNERS.get(name, name)
    base = str(parsed.get("old_commit_hash") or "")
    statement = row.text("problem_statement")
    issue = _ISSUE.search(statement)
    return Task(
        instance_id=row.text("instance_id", f"{name}__{commit}"),
        repo=repo,
        base_commit="" if base.endswith("^") else base,
        problem_statement=issue.group(1) if issue else statement,
        patch=_gold(row, parsed),
        test_patch=_tests(row),
        FAIL_TO_PASS=fixed,
        PASS_TO_PASS=tuple(test for test in passing if test in before),
        source=Source(kind="git", location=repo) if "/" in repo else None,
        environment=Image(name=image),
        test_command=_COMMAND,
        log_parser="pytest",
        metadata={"row": {**row.rest(*_KNOWN), "commit_hash": commit}},
    )


def _clean(test: str) -> str:
    return _COLOUR.sub("", test).partition(" - ")[0]


def _passing(row: Fields) -> list[str]:
    expected = row.mapping("expected_output_json")
    return sorted({_clean(test) for test, said in expected.items() if test and said == "PASSED"})


def _before(row: Fields) -> set[str]:
    """Tests that passed at the old commit, from the row's own log of them."""
    log = row.mapping("execution_result_content").get("old_commit_res_stdout") or ""
    summary = str(log).partition("short test summary info")[2]
    lines = [line for line in summary.splitlines() if line.startswith("PASSED ")]
    return {_clean(".".join(line.split("::")[1:])) for line in lines}


def _tests(row: Fields) -> str:
    """A diff that adds the row's test files."""
    result = row.mapping("execution_result_content")
    names, codes = result.get("test_file_names") or [], result.get("test_file_codes") or []
    if len(names) != len(codes) or not names:
        raise row.wrong("execution_result_content", "it has no test files, or not one code each")
    return "".join(
        new_file_diff(f"{_FOLDER}/{str(name).rpartition('/')[2]}", str(code))
        for name, code in zip(names, codes, strict=True)
    )


def _gold(row: Fields, parsed: dict[str, Any]) -> str:
    """The commit's changes of Python files that are no tests."""
    try:
        return "".join(_file(diff) for diff in parsed.get("file_diffs") or () if _is_program(diff))
    except (KeyError, TypeError, AttributeError) as error:
        raise row.wrong("parsed_commit_content", f"a file's diff has no {error}") from error


def _is_program(diff: dict[str, Any]) -> bool:
    path = diff["header"]["file"]["path"]
    name = path.rpartition("/")[2]
    test = (
        name.startswith("test_") or name.endswith("_test.py") or _TEST_PARTS & set(path.split("/"))
    )
    return path.endswith(".py") and not test and not diff.get("is_binary_file")


def _file(diff: dict[str, Any]) -> str:
    path = diff["header"]["file"]["path"]
    parts = [f"diff --git a/{path} b/{path}"]
    parts += [diff["header"]["misc_line"]] if diff["header"].get("misc_line") else []
    if diff.get("minus_file") and diff.get("plus_file"):
        parts += [f"--- {diff['minus_file']['path']}", f"+++ {diff['plus_file']['path']}"]
    marks = {"context": " ", "added": "+", "deleted": "-", "note": "\\ "}
    for hunk in diff.get("hunks") or ():
        place = hunk["descriptor"]
        old, new = _range(place["old_range"]), _range(place["new_range"])
        parts.append(f"@@ -{old} +{new} @@")
        parts += [marks[line["type"]] + line["content"] for line in hunk["line_group"]["all_lines"]]
    return "\n".join(parts) + "\n"


def _range(place: dict[str, Any]) -> str:
    length = place.get("length")
    return str(place["start"]) if length is None else f"{place['start']},{length}"
