"""Applies patches of unknown origin to a fresh sandbox, and knows which files they touch."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from swe_env.errors import GradingError, PatchError, PatchRefused
from swe_env.sandbox.base import Sandbox

_GIT = ("git", "apply", "--numstat", "-z", "--apply", "--whitespace=nowarn")
_NAMES = ("sh", "-c", 'exec "$@" >&"$SWE_ENV_CHANNEL"', "sh")
"""Has what a command prints come over the channel: names in it are bytes, and may be many."""
_FUZZY = ("patch", "--batch", "--fuzz=5", "-p1", "--no-backup-if-mismatch", "--reject-file=-")
_GIT_ENV = {
    "GIT_DIR": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
}
"""Git without a repository: no configuration, hook or attribute of the workspace has a say."""
_HEADER = re.compile(
    r'^(?:--- |\+\+\+ |rename from |rename to |copy from |copy to )("(?:[^"\\]|\\.)*"|[^\t\n]*)',
    re.MULTILINE,
)
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_BOTH = re.compile(r"^diff --git (.+)$", re.MULTILINE)
_LINK = re.compile(
    r"^(?:new file mode|new mode) 120000$(?:\n(?!diff --git ).*)*?\n\+(?!\+\+ )(.*)$", re.MULTILINE
)
_ESCAPE = re.compile(r"\\([0-7]{3}|.)")
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply_patch` did."""

    paths: tuple[str, ...]
    """Every path that the patch may have touched, relative to the root, sorted."""
    fuzzy: bool = False
    """It did not apply as it stands; the lines around its changes were not all as it says."""


def patch_paths(patch: str) -> set[str]:
    """Every path named by a header of a unified diff; at least those it changes."""
    found = set()
    for name in _HEADER.findall(patch):
        path = _unquote(name.strip())
        if path != "/dev/null":
            found.add(path[2:] if path[:2] in ("a/", "b/") else path)
            found.add(path.partition("/")[2] or path)
    for names in _BOTH.findall(patch):
        old, found_middle, new = names.partition(" b/")
        if found_middle and not names.startswith('"'):
            found.update((old.removeprefix("a/"), new))
        elif names.startswith('"'):
            found.update(_unquote(n)[2:] for n in re.findall(r'"(?:[^"\\]|\\.)*"', names))
    return {path for path in found if path}


def apply_patch(
    sandbox: Sandbox, patch: str, *, what: str = "The patch", fuzzy: bool = False
) -> Applied:
    """Apply a unified diff to the sandbox's workspace, all of it or nothing.

    Git itself refuses absolute paths, ``..``, ``.git`` and paths behind a symbolic link; links
    that would point out of the workspace are refused here.

    Args:
        sandbox: Whose workspace.
        patch: The diff; empty for none.
        what: What it is called in errors.
        fuzzy: Where git does not take it, try ``patch --fuzz=5``, as the SWE-bench harness does;
            if that fails too the workspace may be changed in part.

    Raises:
        PatchError: it does not apply.
        PatchRefused: it reaches outside the workspace or into `.git`, or is too large.
        GradingError: git is not there.
    """
    if not patch.strip():
        return Applied(())
    for target_path, target in _links(patch):
        resolved = posixpath.normpath(posixpath.join(posixpath.dirname(target_path), target))
        if target.startswith("/") or resolved == ".." or resolved.startswith("../"):
            raise PatchRefused(f"{what} makes a link that points out of the workspace ({target}).")
    data = (patch if patch.endswith("\n") else patch + "\n").encode("utf-8", "surrogateescape")
    result = sandbox.exec(
        [*_NAMES, *_GIT, "-"], stdin=data, env=_GIT_ENV, timeout=120, channel=True
    )
    if result.exit_code == 127:
        raise GradingError("git is not installed where the tests run: install it there.")
    if result.timed_out or result.limit:
        raise PatchRefused(f"{what} was too much to apply: {result.limit or 'it took 120 s'}.")
    if result.exit_code != 0:
        reason = result.output.strip().splitlines()[:1] or ["git apply failed"]
        kind = PatchRefused if _leads_out(patch, reason[0]) else PatchError
        if fuzzy and kind is PatchError and _apply_fuzzily(sandbox, patch):
            return Applied(tuple(sorted(patch_paths(patch))), fuzzy=True)
        raise kind(f"{what} does not apply: {reason[0].removeprefix('error: ')}.")
    printed = result.channel.decode("utf-8", "surrogateescape")
    names = [entry.split("\t", 2)[-1] for entry in printed.split("\0")]
    return Applied(tuple(sorted(patch_paths(patch) | {name for name in names if name})))


def _apply_fuzzily(sandbox: Sandbox, patch: str) -> bool:
    """GNU patch, which takes hunks whose surroundings differ in part; False if it fails too."""
    data = _plain(patch).encode("utf-8", "surrogateescape")
    if not data:
        return False
    result = sandbox.exec(_FUZZY, stdin=data, env={"LC_ALL": "C", "PATCH_GET": "0"}, timeout=120)
    return result.exit_code == 0


def _plain(patch: str) -> str:
    """A patch's hunks, each file's under a header written anew; empty where one has no file.

    GNU patch finds names in many kinds of lines (``Index:``, context diffs, a name that ends at a
    blank); so it is given none but those that `patch_paths` has seen.
    """
    named = patch_paths(patch)
    out: list[str] = []
    header: list[str] = []
    old = new = 0  # lines of the hunk that are still to come
    for line in patch.split("\n"):
        if old > 0 or new > 0:
            old -= line[:1] in ("", " ", "-")
            new -= line[:1] in ("", " ", "+")
            out.append(line)
        elif line.startswith("\\"):
            out.append(line)
        elif line.startswith("--- "):
            header = [_side(line[4:], named)]
        elif line.startswith("+++ ") and len(header) == 1:
            header.append(_side(line[4:], named))
        elif found := _HUNK.match(line):
            if len(header) == 2 and all(header):
                out += [f"--- {header[0]}", f"+++ {header[1]}"]
                header.append("written")
            elif len(header) != 3:
                return ""
            old, new = (int(count or 1) for count in found.groups())
            out.append(line)
    return "\n".join([*out, ""]) if out else ""


def _side(name: str, named: set[str]) -> str:
    """A name of a header as no program can read it in two ways; empty where that cannot be."""
    path = _unquote(name.partition("\t")[0].strip())
    if path == "/dev/null":
        return path
    path = posixpath.normpath(path.partition("/")[2] or path)
    return f"a/{path}\t" if path in named and not re.search(r'["\\\x00-\x1f]', path) else ""


def _leads_out(patch: str, reason: str) -> bool:
    """Whether a patch that git did not take names a place that no patch may touch."""
    if "invalid path" in reason or "beyond a symbolic link" in reason:
        return True
    paths = patch_paths(patch)
    return any(path.startswith("/") or {"..", ".git"} & set(path.split("/")) for path in paths)


def _links(patch: str) -> list[tuple[str, str]]:
    """(path, target) of each symbolic link that the patch makes or changes."""
    found = []
    for section in re.split(r"^(?=diff --git )", patch, flags=re.MULTILINE):
        for match in _LINK.finditer(section):
            paths = sorted(patch_paths(section), key=len)
            found.append((paths[0] if paths else "", match.group(1)))
    return found


def _unquote(name: str) -> str:
    if not name.startswith('"'):
        return name
    raw = bytearray()
    body = name[1:-1]
    position = 0
    for match in _ESCAPE.finditer(body):
        raw += body[position : match.start()].encode()
        code = match.group(1)
        octal = len(code) == 3
        raw += bytes([int(code, 8)]) if octal else _PLAIN.get(code, code).encode()
        position = match.end()
    raw += body[position:].encode()
    return raw.decode("utf-8", "surrogateescape")
