"""Problem statements: what a user would observe of a bug, told from a failing test's run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swe_env.tasks.leaks import leaked

Detail = Literal["symptom", "function", "line"]
LIMIT = 900
"""Characters of a statement at most (of each bug, where there are several)."""
_FEW_WORDS = 4
"""Of a commit message that alone makes no statement ("fix tests", "wip")."""
_TRAILER = re.compile(
    r"\s*(Signed-off-by|Co-authored-by|Reviewed-by|Acked-by|Change-Id|\(?cherry[- ]picked)"
    r"|Merge (pull request|branch|remote)"
    r"|\W*(PR|Pull request|See|Link|Refs?|Closes|Fixes|Resolves)\s*:?\s*(https?:|#)\S*\W*$",
    re.IGNORECASE,
)
_LOCAL = re.compile(r"\b\w+\.<locals>\.")
_REFERENCE = re.compile(r"\s*\((?:gh-|PR ?)?#\d+\)|https?://\S+/(?:pull|commit|merge_requests)/\S+")
_ORDER = ("mismatch", "truth", "raised", "no_raise", "condition")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bug shows, in the tree that the agent gets."""

    path: str
    function: str
    line: int
    text: str
    """The line as it stands there."""


def write(
    failures: Iterable[Mapping[str, Any]], place: Place, detail: Detail, *, symptoms: int = 1
) -> str:
    """A statement from the facts of failing tests; the patch is never looked at.

    Args:
        failures: facts as `swe_env.tasks.synth.facts.of` gives them.
        place: used as far as `detail` allows.
        detail: ``symptom`` tells the behaviour only, ``function`` also the file and function,
            ``line`` also quotes the suspect line as a traceback would.
        symptoms: how many different failing behaviours to tell at most.

    Returns:
        At most `LIMIT` characters; empty when no failure can be told.
    """
    end = _place(place, detail)
    text = _told(failures, LIMIT - len(end), symptoms)
    return text + end if text else ""


def several(statements: Sequence[str]) -> str:
    """One statement for several bugs, from the statement of each."""
    parts = [f"{number}. {text.strip()}" for number, text in enumerate(statements, start=1)]
    return f"{len(parts)} things are wrong.\n\n" + "\n\n".join(parts) + "\n"


def of_fix(
    message: str, failures: Iterable[Mapping[str, Any]], patch: str, tests: Iterable[str] = ()
) -> str:
    """A statement for a fix out of a repository's history.

    What its author wrote, as far as it quotes nothing of the fix, and what its tests showed
    before it.

    Args:
        message: the commit's message.
        failures: facts of the tests that fail without it.
        patch: the fix, to keep out.
        tests: ids of its hidden tests, to keep out as well.

    Returns:
        Empty when neither says enough.
    """
    said = _message(message, patch)
    plain = [_without_tests(facts) for facts in failures]
    hidden = tuple(tests)
    shown = _told([f for f in plain if not leaked(_symptom(f), patch, hidden)], LIMIT, 3)
    if not shown and len(said.split()) < _FEW_WORDS:
        return ""
    return "\n\n".join(part for part in (said, shown) if part) + "\n"


def _without_tests(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Facts that do not name the test: its own frames gone, and itself out of qualified names."""
    frames = [frame for frame in facts.get("frames", ()) if "test" not in str(frame[0])]
    plain = {k: _LOCAL.sub("", v) if isinstance(v, str) else v for k, v in facts.items()}
    return {**plain, "frames": [frame for frame in frames if "<locals>" not in str(frame)]}


def _message(message: str, patch: str) -> str:
    """A commit message without trailers, references to where the answer is, and the patch."""
    kept = []
    for line in message.strip().splitlines():
        if _TRAILER.match(line) or leaked(line, patch):
            continue
        kept.append(_REFERENCE.sub("", line).rstrip())
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    return "" if leaked(text, patch) else text[:LIMIT].rstrip()


def _told(failures: Iterable[Mapping[str, Any]], room: int, symptoms: int) -> str:
    """The plainest failing behaviours, a paragraph each."""
    told = [
        (_rank(facts), text, _traceback(facts).splitlines()[-1] if facts.get("frames") else text)
        for facts in failures
        if (text := _symptom(facts))
    ]
    kept: list[str] = []
    ends: set[str] = set()
    for _, text, end in sorted(told):
        # The same error out of another test says nothing new.
        if end in ends or len("\n\n".join([*kept, text])) > room:
            continue
        kept.append(text)
        ends.add(end)
        if len(kept) == symptoms:
            break
    return "\n\n".join(kept)


def _rank(facts: Mapping[str, Any]) -> tuple[int, int]:
    kind = str(facts.get("kind", ""))
    length = sum(len(str(facts.get(key, ""))) for key in ("call", "got", "expected"))
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), length)


def _symptom(facts: Mapping[str, Any]) -> str:
    kind, call = facts.get("kind"), facts.get("call")
    got, expected = facts.get("got"), facts.get("expected")
    if kind == "mismatch" and call:
        relation = facts.get("relation")
        if relation in ("==", "is"):
            same = f"`{call}` gives `{got}`"
            return f"{same}, but the right result is `{expected}`."
        return f"`{call}` gives `{got}`; `{call} {relation} {facts.get('wanted')}` should hold."
    if kind == "truth" and call:
        return f"`{call}` should be {expected}, but it gives `{got}`."
    if kind == "raised" and call:
        return f"`{call}` should work, but it fails:\n\n{_traceback(facts)}"
    if kind == "no_raise" and call:
        wanted = str(facts.get("message", "")).removeprefix("DID NOT RAISE ").strip()
        name = wanted.removeprefix("<class '").removesuffix("'>").removesuffix(" not raised")
        return f"`{call}` should raise `{name.rsplit('.', 1)[-1]}`, but it raises nothing."
    if kind == "condition" and call:
        return f"`{call}` should hold, but it does not."
    if kind == "import":
        return f"This cannot be imported: {facts.get('message')}."
    if facts.get("frames"):
        return f"This fails:\n\n{_traceback(facts)}"
    return ""


def _traceback(facts: Mapping[str, Any]) -> str:
    lines = ["Traceback (most recent call last):"]
    for path, line, function, text in list(facts.get("frames", ()))[-2:]:
        lines += [f'  File "{path}", line {line}, in {function}', f"    {text}"]
    message = facts.get("message")
    lines.append(f"{facts.get('exception')}: {message}" if message else str(facts["exception"]))
    return "\n".join(lines) if len(lines) > 2 else lines[-1]


def _place(place: Place, detail: Detail) -> str:
    name = place.function.rsplit(".", 1)[-1]
    if detail == "line":
        quoted = f'  File "{place.path}", line {place.line}, in {name}\n    {place.text.strip()}'
        return f"\n\nThe suspect line is in `{place.function}`:\n\n{quoted}\n"
    if detail == "function":
        return f"\n\nIt shows in `{place.function}` in `{place.path}`.\n"
    return "\n"
