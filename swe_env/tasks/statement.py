"""Problem statements: what a user would observe of a bug, told from a failing test's run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Detail = Literal["symptom", "function", "line"]
LIMIT = 900
"""Characters of a statement at most."""
_ORDER = ("mismatch", "truth", "raised", "no_raise", "condition")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bug shows, in the tree that the agent gets."""

    path: str
    function: str
    line: int
    text: str
    """The line as it stands there."""


def write(failures: Iterable[Mapping[str, Any]], place: Place, detail: Detail) -> str:
    """A statement from the facts of failing tests; the patch is never looked at.

    Args:
        failures: facts as `swe_env.tasks.synth.facts.of` gives them.
        place: used as far as `detail` allows.
        detail: ``symptom`` tells the behaviour only, ``function`` also the file and function,
            ``line`` also quotes the suspect line as a traceback would.

    Returns:
        At most `LIMIT` characters; empty when no failure can be told.
    """
    end = _place(place, detail)
    told = [(_rank(facts), text) for facts in failures if (text := _symptom(facts))]
    for _, text in sorted(told):
        if len(text) + len(end) <= LIMIT:
            return text + end
    return ""


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
