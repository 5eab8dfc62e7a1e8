"""When two patches are the same: a key that ignores comments, blank lines and formatting."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import textwrap
from collections.abc import Iterator

from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, PatchedFile, PatchSet

from swe_env.syntax import parse

_PREFIXES = ("", "if _:\n    pass\n", "try:\n    pass\n", "match _:\n    case 0:\n        pass\n")
_SUFFIXES = ("", "\n    pass", "\ndef _(): pass")
_TOKEN = re.compile(r"""\"(?:\\.|[^"\\])*\"|'(?:\\.|[^'\\])*'|\#.*|\w+|\S""")
_HEADER = re.compile(r"^(index |similarity |dissimilarity )")


@functools.lru_cache(maxsize=4096)
def patch_key(patch: str) -> str:
    """A key equal for patches (of the same starting state) that make the same change.

    Changed blocks of Python files are compared as syntax trees at their place and indentation, so
    that comments, blank lines, quotes and line breaks don't count; a block that is no complete
    statement is compared by tokens. Other files are compared by lines, runs of blanks as one.
    A block whose two sides are the same in this sense is compared as it is written, since it may
    change the inside of a string. It is dropped where it changes nothing for certain: Python with
    equal syntax trees, or of comments and blank lines alone. A patch left with none has the key "".

    The comparison sees the diff only, not the files: two patches that reach the same file by
    different hunks may get different keys.
    """
    if not patch.strip():
        return ""
    try:
        files = PatchSet(patch)
        parts = [part for file in files for part in _file_parts(file)]
        recognised = len(files) > 0
    except UnidiffParseError:
        recognised = False
    if not recognised:
        parts = [" ".join(patch.split())]
    if not parts:
        return ""
    return hashlib.sha256("\0".join(sorted(parts)).encode(errors="replace")).hexdigest()[:32]


def _file_parts(file: PatchedFile) -> Iterator[str]:
    """One string for every change of the file that means something."""
    python = file.path.endswith((".py", ".pyi"))
    head = f"{file.source_file}\0{file.target_file}"
    blocks = 0
    for hunk in file:
        for line_no, old, new in _blocks(hunk):
            blocks += 1
            before, after = (_normalise(side, python) for side in (old, new))
            if before == after:
                if python and _same_code(old, new):
                    continue
                before, after = old, new
            yield f"{head}\0{line_no}\0{before}\0{after}"
    if not blocks:  # renamed, mode changed, binary, or an empty file made or removed
        info = [line for line in (file.patch_info or []) if not _HEADER.match(line)]
        yield head + "\0" + "".join(info)


def _blocks(hunk: Hunk) -> Iterator[tuple[int, str, str]]:
    """(line of its first code in the source, old text, new text) of each run of changed lines."""
    position = hunk.source_start
    old: list[str] = []
    new: list[str] = []
    for line in hunk:
        if line.is_removed:
            old.append(line.value)
        elif line.is_added:
            new.append(line.value)
        elif line.is_context:
            if old or new:
                yield position + _leading(old), "".join(old), "".join(new)
            position += len(old) + 1
            old, new = [], []
    if old or new:
        yield position + _leading(old), "".join(old), "".join(new)


def _leading(lines: list[str]) -> int:
    """How many comments and blank lines come first; 0 when there is nothing else."""
    code = (i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#"))
    return next(code, 0)


def _normalise(text: str, python: bool) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not python:
        return "\n".join(re.sub(r"(?<=\S)\s+", " ", line) for line in lines)
    lines = [line.expandtabs() for line in lines]
    code = [line for line in lines if not line.lstrip().startswith("#")]
    if not code:
        return ""
    indent = len(code[0]) - len(code[0].lstrip())
    body = textwrap.dedent("\n".join(code))
    return f"{indent}:{_tree(body) or _tokens(body)}"


def _same_code(old: str, new: str) -> bool:
    """Whether Python that normalises to the same is the same for certain."""
    lines = [line.strip() for line in f"{old}\n{new}".splitlines()]
    if all(not line or line.startswith("#") for line in lines):
        return True
    tree = _tree(textwrap.dedent(old))
    return tree is not None and tree == _tree(textwrap.dedent(new))


def _tree(code: str) -> str | None:
    """The code's syntax tree, also of an ``elif`` or a decorator alone; None when it has none."""
    for prefix in _PREFIXES:
        for suffix in _SUFFIXES:
            try:
                return ast.dump(parse(prefix + code + suffix))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
    return None


def _tokens(code: str) -> str:
    """Tokens without comments, each line led by its indentation.

    By a pattern and not by `tokenize`, which refuses fragments with an unmatched bracket.
    """
    lines = []
    for line in code.splitlines():
        tokens = [token for token in _TOKEN.findall(line) if not token.startswith("#")]
        if tokens:
            lines.append(f"{len(line) - len(line.lstrip())} {' '.join(tokens)}")
    return "\n".join(lines)
