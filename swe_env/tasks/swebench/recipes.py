"""The benchmark's installation recipes (repository and version), as environments without Docker."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from swe_env.types import Recipe

_TOOLS = {
    "setuptools": "setuptools<69",
    "setuptools-scm": "setuptools_scm<8",
    "wheel": "wheel",
}
"""Build tools of the recipes' time: with them most projects build without isolation, as they did
then; the isolated build, which takes today's tools, is the second try."""
_REQUIREMENT_FILES = {
    "django/django": ("tests/requirements/py3.txt",),
    "matplotlib/matplotlib": (
        "requirements/dev/dev-requirements.txt",
        "requirements/testing/travis_all.txt",
    ),
    "pallets/flask": ("requirements/dev.txt",),
    "pylint-dev/pylint": ("requirements_test.txt",),
    "sympy/sympy": ("requirements-dev.txt", "requirements-test.txt"),
}
"""What ``packages: requirements.txt`` of a recipe means in each repository: the first that is."""
_PURE = frozenset({"sympy/sympy"})
"""Repositories that run from their checkout without being installed."""
_NOT_HERE = frozenset(
    {"astropy/astropy", "matplotlib/matplotlib", "psf/requests", "scikit-learn/scikit-learn"}
)
"""Repositories whose recipes want more than Python packages: a compiler and system libraries, or
(requests) a web server that answers the tests. Their published images have it."""
_PIP = re.compile(r"^(?:python3? -m )?pip install\s+")
_SETUP = re.compile(r"^python3? setup\.py (?:install|develop)\s*$")
_PIN = re.compile(r"(?<!\S)[A-Za-z0-9][A-Za-z0-9._-]*==[^\s;]+")
"""A pin of a frozen list, whose other entries point to files of a machine that is gone."""
_DROPPED = re.compile(r"\s(?:--verbose|-v|--no-use-pep517|--no-build-isolation)(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Recipes:
    """How to run one version of a repository."""

    recipe: Recipe
    test_command: str


def recipe_for(repo: str, version: str) -> Recipes | None:
    """The benchmark's recipe of that version, or None where it has none."""
    spec = _table().get(repo, {}).get(version)
    return None if spec is None else from_spec(spec, repo=repo, version=version)


def serves(repo: str, version: str) -> bool:
    """Whether a recipe gives that version all its tests need, with Python packages alone."""
    return repo not in _NOT_HERE and version in _table().get(repo, {})


def from_spec(
    spec: Mapping[str, Any], *, repo: str, version: str = "", frozen: str = ""
) -> Recipes:
    """A recipe from a harness's specification (also a row's ``install_config``).

    Args:
        spec: ``python``, ``packages``, ``pip_packages``, ``pre_install``, ``install``,
            ``test_cmd``; only the first is needed.
        repo: ``owner/name``.
        version: the project's version, for projects that ask git for theirs.
        frozen: pins of everything that was installed once, separated by white space; they win.
    """
    test_command = _test_command(spec.get("test_cmd") or "pytest -rA")
    wanted = _requirements(spec, repo, test_command, _PIN.findall(frozen))
    recipe = Recipe(
        python=".".join(str(spec["python"]).split(".")[:2]),
        requirements=tuple(wanted),
        install="" if repo in _PURE else _install(spec, repo, version, bool(frozen)),
    )
    return Recipes(recipe, test_command)


@cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    data = files(__package__).joinpath("recipes.json").read_bytes()
    found: dict[str, dict[str, dict[str, Any]]] = msgspec.json.decode(data)["repositories"]
    return found


def _name(requirement: str) -> str:
    """A requirement's normalised distribution name."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement.strip("'\" "))
    return re.sub(r"[-_.]+", "-", match.group(0)).lower() if match else ""


def _requirements(
    spec: Mapping[str, Any], repo: str, test_command: str, frozen: list[str]
) -> list[str]:
    pins = frozen or [str(pin).strip("'\" ") for pin in spec.get("pip_packages") or ()]
    packages = str(spec.get("packages") or "")
    if not frozen and packages not in ("requirements.txt", "environment.yml"):
        # pip's list comes last in the benchmark's own installation, so it wins.
        named = {_name(pin) for pin in pins}
        pins = [word for word in shlex.split(packages) if _name(word) not in named] + pins
    named = {_name(pin) for pin in pins}
    tools = [] if repo in _PURE else [pin for name, pin in _TOOLS.items() if name not in named]
    if "pytest" in test_command and repo != "pytest-dev/pytest" and "pytest" not in named:
        tools.append("pytest")
    return list(dict.fromkeys([*pins, *tools]))


def _install(spec: Mapping[str, Any], repo: str, version: str, frozen: bool) -> str:
    """The shell commands that put the checkout's own package into the environment."""
    steps = [f"export {_scm_variable(repo)}={shlex.quote(version)}"] if version else []
    steps += [step for step in _listed(spec.get("pre_install")) if step.startswith(("sed", "grep"))]
    listed = spec.get("reqs_path") or _REQUIREMENT_FILES.get(repo)
    if spec.get("packages") == "requirements.txt" and listed and not frozen:
        names = " ".join(map(shlex.quote, listed))
        once = 'if [ -f "$f" ]; then uv pip install -q -r "$f"; break; fi'
        steps.append(f"for f in {names}; do {once}; done")
        pins = " ".join(shlex.quote(str(pin)) for pin in spec.get("pip_packages") or ())
        steps += [f"uv pip install -q {pins}"] if pins else []
    for step in _listed(spec.get("install")):
        steps.append(_with_uv(step))
    return " && ".join(f"{{ {step}; }}" for step in steps)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(step) for step in value or ()]


def _with_uv(step: str) -> str:
    """An installation step of the benchmark, in uv's words."""
    step = step.strip()
    if _SETUP.match(step):
        step = "pip install -e ."
    if not _PIP.match(step):
        return step
    asked = _DROPPED.sub("", " " + _PIP.sub("", step)).strip()
    # A checkout is always put on the path: what is installed are its metadata and scripts.
    asked = "-e ." if asked == "." else asked
    quoted = " ".join(shlex.quote(word) for word in shlex.split(asked))
    return f"uv pip install -q --no-build-isolation {quoted} || uv pip install -q {quoted}"


def _scm_variable(repo: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "_", repo.rpartition("/")[2]).upper()
    return f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{name}"


def _test_command(command: str) -> str:
    """The command without the tool around it: tox only calls pytest here."""
    return "python -m pytest -rA" if command.startswith("tox ") else command
