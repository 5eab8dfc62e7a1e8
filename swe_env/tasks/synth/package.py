"""A package as the generator sees it: its files, what it needs, the environment for its tests."""

from __future__ import annotations

import email.parser
import functools
import logging
import re
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from swe_env.errors import RecipeError, TaskError
from swe_env.repos import archives, environment, head, pristine
from swe_env.repos.environments import installed
from swe_env.tasks.synth.needs import setuptools_needs
from swe_env.types import Recipe, Source

TOOLS = ("pytest==8.4.2", "coverage==7.10.7")
"""What every environment of ours holds besides the package's own needs."""
_EXTRAS = ("test", "tests", "testing")
_NOT_SOURCE = {"test", "tests", "testing", "doc", "docs", "example", "examples", "bench", "build"}
_NOT_SOURCE |= {"benchmarks", "scripts", "tools", "setup.py", "conftest.py", "noxfile.py"}
_TEST = re.compile(r"test_.*\.py$|.*_tests?\.py$")
_TEST_FOLDERS = {"test", "tests", "testing"}
_log = logging.getLogger(__name__)


def is_test(path: str) -> bool:
    """Whether a file belongs to the tests: theirs, their data, or what sets them up."""
    name = PurePosixPath(path)
    return bool(
        _TEST_FOLDERS & set(name.parts[:-1]) or _TEST.match(name.name) or name.name == "conftest.py"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package ready to have its tests run."""

    source: Source
    name: str
    version: str
    checkout: Path
    """Pristine files, a repository of one commit."""
    commit: str
    recipe: Recipe
    environment: Path
    revision: str = ""
    """Commit of the git repository; empty for other sources."""

    @property
    def label(self) -> str:
        """Name and version, for instance ids."""
        version = self.revision[:7] or self.version
        return f"{self.name}-{version}" if version else self.name

    @property
    def base_commit(self) -> str:
        """The commit that a task names: the repository's own where it has one."""
        return self.revision or self.commit

    def files(self) -> list[str]:
        """Python files that are the package's own, not its tests, docs or set-up."""
        found = []
        for path in self.checkout.rglob("*.py"):
            name = PurePosixPath(path.relative_to(self.checkout))
            plain = not set(name.parts) & _NOT_SOURCE and ".git" not in name.parts
            if plain and not _TEST.match(name.name):
                found.append(str(name))
        return sorted(found)


def prepare(
    source: Source, requirements: tuple[str, ...] | None = None, *, revision: str = ""
) -> Package:
    """Get the files and build the environment.

    Args:
        source: where from; a missing sha256 of an sdist is filled in from what was downloaded.
        requirements: pins for the tests; by default resolved from the package's own metadata
            (its dependencies and its ``test`` extra) and then pinned.
        revision: commit of a git source.

    Raises:
        TaskError: the package cannot be had, or its environment would hold a second copy of it.
    """
    if source.kind == "sdist" and not source.sha256:
        archive = archives.download(source.location, source.version)
        source = replace(source, sha256=archives.hash_of(archive))
    checkout = pristine(source, revision)
    return described(source, checkout, head(checkout), requirements, revision=revision)


def described(
    source: Source,
    checkout: Path,
    commit: str,
    requirements: tuple[str, ...] | None = None,
    *,
    revision: str = "",
) -> Package:
    """The package whose files lie in a folder, with its environment; see `prepare`."""
    name, version, wanted, extras = _metadata(checkout, source)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    roots = ("src", ".") if (checkout / "src").is_dir() else (".",)
    if requirements is None:
        requirements = _pins(python, tuple(wanted), tuple(extras))
    recipe = Recipe(python=python, requirements=(*TOOLS, *requirements), pythonpath=roots)
    folder = environment(recipe)
    _refuse_copy(name, checkout, folder, roots)
    return Package(
        source=source,
        name=name,
        version=version,
        checkout=checkout,
        commit=commit,
        recipe=recipe,
        environment=folder,
        revision=revision,
    )


@functools.cache
def _pins(python: str, wanted: tuple[str, ...], extras: tuple[str, ...]) -> tuple[str, ...]:
    """Resolve requirements by installing them once, and pin what that gave."""
    tools = {re.split(r"[=\[]", tool)[0] for tool in TOOLS}
    # Another version of pytest than ours would only make the whole extra impossible.
    extras = tuple(r for r in extras if re.split(r"[^\w.-]", r)[0].lower() not in tools or "[" in r)
    for asked in ((*wanted, *extras), wanted):
        if not asked:
            return ()
        try:
            folder = environment(Recipe(python=python, requirements=(*TOOLS, *asked)))
        except RecipeError as error:
            _log.info("without the test extra: %s", error)
            problem = error
            continue
        names = installed(folder).items()
        return tuple(f"{n}=={v}" for n, v in sorted(names) if n not in tools and n != "pip")
    raise problem


def _metadata(checkout: Path, source: Source) -> tuple[str, str, list[str], list[str]]:
    """Name, version, requirements and test requirements."""
    groups: dict[str, Any] = {}
    project: dict[str, Any] = {}
    try:
        data = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
        project, groups = data.get("project", {}), data.get("dependency-groups", {})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        pass
    info = checkout / "PKG-INFO"
    extras = [r for name in _EXTRAS for r in groups.get(name, ()) if isinstance(r, str)]
    if info.is_file():
        parsed = email.parser.Parser().parsestr(info.read_text(encoding="utf-8"), headersonly=True)
        lines = [str(line) for line in parsed.get_all("Requires-Dist", [])]
        wanted = [line for line in lines if "extra ==" not in line]
        extras += [_unmarked(line) for line in lines if _extra(line) in _EXTRAS]
        return str(parsed["Name"]), str(parsed["Version"]), wanted, extras
    optional = project.get("optional-dependencies", {})
    extras += [r for name in _EXTRAS for r in optional.get(name, ())]
    old = setuptools_needs(checkout)
    folder = PurePosixPath(source.location.rstrip("/")).name.removesuffix(".git")
    name = str(project.get("name") or old.name or folder)
    wanted = list(project.get("dependencies") or old.wanted)
    return name, str(project.get("version", "")), wanted, [*extras, *old.extras]


def _extra(line: str) -> str:
    found = re.search(r"""extra\s*==\s*['"]([\w.-]+)['"]""", line)
    return found[1] if found else ""


def _unmarked(line: str) -> str:
    """A requirement without the part of its marker that names the extra."""
    plain = re.sub(r"""(\s+and\s+)?\(?extra\s*==\s*['"][\w.-]+['"]\)?(\s+and\s+)?""", "", line)
    return plain.rstrip("; ").strip()


def _refuse_copy(name: str, checkout: Path, folder: Path, roots: tuple[str, ...]) -> None:
    """The environment must not hold the package itself: that would be the answer to read."""
    tops = {
        path.stem
        for root in roots
        for path in (checkout / root).iterdir()
        if (path.suffix == ".py" and path.stem not in ("setup", "conftest"))
        or (path / "__init__.py").is_file()
    }
    for site in folder.glob("lib/python*/site-packages"):
        copies = {path.stem for path in site.iterdir() if path.suffix in ("", ".py")} & tops
        copies -= _NOT_SOURCE
        if copies:
            raise TaskError(
                f"{name} cannot be made into tasks: pytest or one of its requirements installs "
                f"{', '.join(sorted(copies))} too, so the answer would lie in the environment."
            )
