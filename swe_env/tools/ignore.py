"""Which files git would leave out, from the workspace's .gitignore files; no git process.

What the base checkout holds is never left out: all of it is committed, and git ignores nothing that
it tracks.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from swe_env.errors import ToolError
from swe_env.sandbox.base import Entry, Files
from swe_env.sandbox.files import DEEPEST


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a .gitignore file."""

    pattern: re.Pattern[str]
    """Matches paths relative to the folder of the file."""
    negated: bool
    folders_only: bool


Layer = tuple[str, list[Rule]]
"""A folder, and the rules of its .gitignore."""


def parse(text: str) -> list[Rule]:
    """The rules of a .gitignore file, in order (gitignore(5))."""
    rules = []
    for raw in text.splitlines():
        line = re.sub(r"(?<!\\)\s+$", "", raw)
        if not line or line.startswith("#"):
            continue
        negated = line.startswith("!")
        line = line[1:] if negated else line
        folders_only = line.endswith("/")
        line = line.rstrip("/")
        if not line:
            continue
        anchored = "/" in line
        expression = _translate(line.lstrip("/"))
        prefix = "" if anchored else "(?:.*/)?"
        try:
            rules.append(Rule(re.compile(f"{prefix}{expression}$"), negated, folders_only))
        except re.error:
            continue
    return rules


def _translate(pattern: str) -> str:
    """A gitignore pattern as a regular expression."""
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i) and (i == 0 or pattern[i - 1] == "/"):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern[i:] == "**" and (i == 0 or pattern[i - 1] == "/"):
            out, i = out + ".+", i + 2
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            inside = pattern[i + 1 : end].replace("\\", "\\\\")
            out, i = out + f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]", end + 1
        elif pattern[i] == "\\" and i + 1 < len(pattern):
            out, i = out + re.escape(pattern[i + 1]), i + 2
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return out


def visible(files: Files, path: str = "") -> Iterator[tuple[str, Entry]]:
    """(relative path, entry) of the files below a folder that git would not ignore, sorted."""
    layers: list[Layer] = []
    parts = path.strip("/").split("/") if path.strip("/") else []
    for depth in range(len(parts)):
        folder = "/".join(parts[:depth])
        if rules := _rules(files, folder):
            layers.append((folder, rules))
    root = "/".join(parts)
    entries, layers = _listing(files, root, layers)
    below = [(root, iter(entries), layers, False)]
    while below:
        folder, rest, layers, gone = below[-1]
        entry = next(rest, None)
        if entry is None:
            below.pop()
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        ignored = gone or _ignored(path, entry.kind == "dir", layers)
        if entry.name == ".git" or (ignored and not in_base(files, path)):
            continue
        if entry.kind == "dir" and len(below) < DEEPEST:
            # Unreadable, or gone since it was listed: left out.
            with contextlib.suppress(ToolError):
                entries, inner = _listing(files, path, layers)
                below.append((path, iter(entries), inner, ignored))
        elif entry.kind == "file":
            yield path, entry


def in_base(files: Files, path: str) -> bool:
    """Whether the base checkout has something at that path."""
    base = getattr(files, "base", None)
    return base is not None and os.path.lexists(base / path)


def hidden(files: Files, paths: Iterable[str]) -> set[str]:
    """Those of these files that git would ignore."""
    known: dict[str, tuple[bool, list[Layer]]] = {}

    def folder_of(path: str) -> tuple[bool, list[Layer]]:
        folder = path.rpartition("/")[0]
        if folder not in known:
            gone, layers = folder_of(folder) if folder else (False, [])
            gone = gone or (bool(folder) and _ignored(folder, True, layers))
            rules = _rules(files, folder)
            known[folder] = gone, [*layers, (folder, rules)] if rules else layers
        return known[folder]

    found = set()
    for path in paths:
        gone, layers = folder_of(path)
        ignored = gone or _ignored(path, False, layers)
        if ".git" in path.split("/") or (ignored and not in_base(files, path)):
            found.add(path)
    return found


def _listing(files: Files, folder: str, layers: list[Layer]) -> tuple[list[Entry], list[Layer]]:
    """A folder's entries, and the rules that hold for them."""
    entries = files.list(folder)
    if any(entry.name == ".gitignore" for entry in entries) and (rules := _rules(files, folder)):
        layers = [*layers, (folder, rules)]
    return entries, layers


def _rules(files: Files, folder: str) -> list[Rule]:
    try:
        data = files.read(f"{folder}/.gitignore" if folder else ".gitignore", limit=1 << 20)
    except ToolError:
        return []
    return parse(data.decode("utf-8", "replace"))


def _ignored(path: str, folder: bool, layers: list[Layer]) -> bool:
    """The last rule that matches decides; deeper files come after."""
    for root, rules in reversed(layers):
        relative = path[len(root) + 1 :] if root else path
        for rule in reversed(rules):
            if (folder or not rule.folders_only) and rule.pattern.match(relative):
                return not rule.negated
    return False
