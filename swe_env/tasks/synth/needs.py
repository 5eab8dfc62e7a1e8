"""What an old source tree needs: setup.cfg, setup.py and requirement files, read and never run."""

from __future__ import annotations

import ast
import configparser
from dataclasses import dataclass
from pathlib import Path

from swe_env.syntax import parse

_EXTRAS = ("test", "tests", "testing")
_FILES = (
    "requirements-test.txt",
    "requirements-tests.txt",
    "requirements_test.txt",
    "test-requirements.txt",
    "test_requirements.txt",
    "tests/requirements.txt",
    "requirements/test.txt",
    "requirements/tests.txt",
    "requirements/testing.txt",
)


@dataclass(frozen=True, slots=True)
class Needs:
    """As far as it is written down in plain words."""

    name: str = ""
    wanted: tuple[str, ...] = ()
    """Requirements of the package."""
    extras: tuple[str, ...] = ()
    """Requirements of its tests."""


def setuptools_needs(checkout: Path) -> Needs:
    """What a tree's setup.cfg, setup.py and test requirement files say, in that order."""
    from_files = tuple(line for name in _FILES for line in _lines(checkout / name))
    for found in (_cfg(checkout / "setup.cfg"), _py(checkout / "setup.py")):
        if found.name or found.wanted or found.extras:
            return Needs(found.name, found.wanted, (*found.extras, *from_files))
    return Needs(extras=from_files)


def _lines(path: Path) -> list[str]:
    """Requirements of a file; options, includes, paths and URLs are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return _plain(lines)


def _plain(lines: list[str]) -> list[str]:
    kept = [line.split(" #")[0].strip() for line in lines]
    return [line for line in kept if line and line[0] not in "-#." and "://" not in line]


def _cfg(path: Path) -> Needs:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        return Needs()

    def listed(section: str, key: str) -> list[str]:
        return _plain(parser.get(section, key, fallback="").splitlines())

    extras = [line for key in _EXTRAS for line in listed("options.extras_require", key)]
    extras += listed("options", "tests_require")
    wanted = listed("options", "install_requires")
    return Needs(parser.get("metadata", "name", fallback=""), tuple(wanted), tuple(extras))


def _py(path: Path) -> Needs:
    """The literal arguments of the call of ``setup``."""
    try:
        tree = parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return Needs()
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        name = getattr(called, "id", getattr(called, "attr", ""))
        if isinstance(node, ast.Call) and name == "setup":
            given = {word.arg: _literal(word.value) for word in node.keywords if word.arg}
            extras = given.get("extras_require")
            tests = (
                [r for key in _EXTRAS for r in _texts((extras or {}).get(key))]
                if isinstance(extras, dict)
                else []
            )
            tests += _texts(given.get("tests_require"))
            found = given.get("name")
            return Needs(
                found if isinstance(found, str) else "",
                tuple(_texts(given.get("install_requires"))),
                tuple(tests),
            )
    return Needs()


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return _plain([item for item in items if isinstance(item, str)])
