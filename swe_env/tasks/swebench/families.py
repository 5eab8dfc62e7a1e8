"""From a row of each family of benchmarks to a task."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from swe_env.errors import ConfigError, UnsupportedTask
from swe_env.grading.pytest_runner import parse_command
from swe_env.grading.runs import runners
from swe_env.repos.patches import reverse_patch
from swe_env.tasks.swebench.fields import Fields
from swe_env.tasks.swebench.recipes import Recipes, from_spec, recipe_for, serves
from swe_env.types import Image, Recipe, Source, Task

Prefer = Literal["auto", "recipe", "image"]
"""Which environment a task gets where there is a choice; ``auto`` takes the recipe where Python
packages are all it needs."""

_START, _END = ">>>>> Start Test Output", ">>>>> End Test Output"
_CONDA = "/opt/miniconda3/envs/testbed/bin/python"
"""Python in the images of the SWE-bench family, whose processes have no environment activated."""
_EXPORT = re.compile(r"^export (\w+=[\w.,:/@%+=-]*)$", re.MULTILINE)
_ANSWER = (
    "instance_id", "repo", "base_commit", "problem_statement", "hints_text", "patch", "test_patch",
    "FAIL_TO_PASS", "PASS_TO_PASS", "version",
)  # fmt: skip
_SMITH_COMMAND = "pytest --disable-warnings --color=no --tb=no --verbose"


@dataclass(frozen=True, slots=True)
class _How:
    """How a task's tests are run."""

    environment: Recipe | Image
    command: str
    runner: str


def _task(row: Fields, how: _How, **changed: object) -> Task:
    repo = row.text("repo")
    values: dict[str, object] = {
        "instance_id": row.text("instance_id"),
        "repo": repo,
        "base_commit": row.text("base_commit", ""),
        "problem_statement": row.text("problem_statement", ""),
        "hints_text": row.text("hints_text", ""),
        "patch": row.text("patch", ""),
        "test_patch": row.text("test_patch", ""),
        "FAIL_TO_PASS": row.tests("FAIL_TO_PASS"),
        "PASS_TO_PASS": row.tests("PASS_TO_PASS"),
        "version": str(row.values.get("version") or ""),
        "source": Source(kind="git", location=repo) if "/" in repo else None,
        "environment": how.environment,
        "test_command": how.command,
        "log_parser": how.runner,
        "metadata": {"row": row.rest(*_ANSWER)},
    }
    task = Task(**(values | changed))  # type: ignore[arg-type]
    if how.runner not in runners.names():
        raise UnsupportedTask(f"{row.where}: no runner reads the logs of {how.runner!r}.")
    if not task.FAIL_TO_PASS:
        raise row.wrong("FAIL_TO_PASS", "no test is named, so nothing could be resolved")
    return task


def _choose(row: Fields, recipes: Recipes | None, alone: bool, image: _How, prefer: Prefer) -> _How:
    """The recipe or the image, as asked for."""
    if prefer == "image" or (prefer == "auto" and not alone):
        return image
    if recipes is None:
        raise row.wrong(
            "version",
            f"there is no recipe of {row.text('repo')} {row.values.get('version')}, only an image: "
            "leave out environment=recipe",
        )
    return _How(recipes.recipe, recipes.test_command, runner_of(recipes.test_command))


def runner_of(command: str, log_parser: str = "") -> str:
    """The runner for a test command; where it has no channel, the log parser's name is one."""
    if "bin/test" in command:
        return "sympy"
    if "runtests.py" in command:
        return "django"
    if re.search(r"\bunittest\b", command):
        return "unittest"
    try:
        parse_command(command)
    except (ConfigError, ValueError):
        return log_parser or "parse_log_pytest"
    return "pytest"


def swebench(row: Fields, prefer: Prefer) -> Task:
    """A row of SWE-bench, in the classic schema or in version 5's."""
    repo, version = row.text("repo"), str(row.values.get("version") or "")
    name = row.text("instance_id").lower().replace("__", "_1776_")
    published = f"swebench/sweb.eval.x86_64.{name}:latest"
    recipes = recipe_for(repo, version)
    if row.has("eval_script"):
        image = _of_script(row, published)
    else:
        image = _how_in_image(published, recipes.test_command if recipes else "pytest -rA")
    return _task(row, _choose(row, recipes, serves(repo, version), image, prefer))


def _of_script(row: Fields, published: str) -> _How:
    """How version 5's own script runs the tests: its command between the two markers."""
    script = row.text("eval_script")
    parser = row.text("log_parser", "parse_log_pytest")
    image = Image(name=row.text("image", published))
    before, _, rest = script.partition(_START)
    inside = rest.partition(_END)[0].splitlines()[1:-1]
    lines = [line.strip() for line in inside if line.strip() and not line.startswith("set ")]
    if not lines:
        raise row.wrong("eval_script", "it has no command between its two output markers")
    # What the script prepares before is in the image; what it exports must be said again.
    settings = " ".join(_EXPORT.findall(before))
    if len(lines) > 1:
        commands = [f"export {settings}", *lines] if settings else lines
        return _How(image, _in_image(" && ".join(commands), parser), parser)
    command = _without_targets(lines[0], row.text("test_patch", ""))
    command = f"{settings} {command}" if settings else command
    return _how_in_image(image.name, command, parser)


def _without_targets(command: str, test_patch: str) -> str:
    """The command less the test files at its end, which every run names anew."""
    words = command.split(" ")
    touched = set(re.findall(r"^\+\+\+ b/(.+)$", test_patch, re.MULTILINE))
    labels = {path.removesuffix(".py").removeprefix("tests/").replace("/", ".") for path in touched}
    while words and (words[-1] in touched or words[-1] in labels or not words[-1]):
        words.pop()
    return " ".join(words)


def _how_in_image(name: str, command: str, log_parser: str = "") -> _How:
    runner = runner_of(command, log_parser)
    return _How(Image(name=name), _in_image(command, runner), runner)


def _in_image(command: str, runner: str) -> str:
    """A test command that finds the environment of the family's images."""
    if runner.startswith("parse_log_"):
        return f". /opt/miniconda3/bin/activate testbed && {command}"
    settings, words = re.fullmatch(r"((?:\w+=\S+ )*)(.*)", command, re.DOTALL).groups()  # type: ignore[union-attr]
    words = re.sub(r"^pytest\b", "-m pytest", re.sub(r"^python3? ", "", words))
    return f"{settings}{_CONDA} {words}"


def swegym(row: Fields, prefer: Prefer) -> Task:
    """A row of SWE-Gym: the classic schema, images of its own, no published recipe."""
    name = row.text("instance_id").lower().replace("__", "_s_")
    image = _how_in_image(f"xingyaoww/sweb.eval.x86_64.{name}", "pytest -rA")
    return _task(row, _choose(row, None, False, image, prefer))


def swerebench(row: Fields, prefer: Prefer) -> Task:
    """A row of SWE-rebench (first or second version): its own recipe and image."""
    config = row.mapping("install_config")
    repo, version = row.text("repo"), str(row.values.get("version") or "")
    spec = dict(config)
    commands = spec.get("test_cmd") or "pytest --no-header -rA --tb=line --color=no"
    spec["test_cmd"] = " && ".join(commands) if isinstance(commands, list) else commands
    recipes = None
    if spec.get("python"):
        recipes = from_spec(spec, repo=repo, version=version, frozen=row.text("requirements", ""))
    name = row.text("instance_id").lower().replace("__", "_1776_")
    published = row.text(
        "docker_image", row.text("image_name", f"swerebench/sweb.eval.x86_64.{name}")
    )
    parser = str(config.get("log_parser") or "")
    image = _how_in_image(published, spec["test_cmd"], parser)
    return _task(row, _choose(row, recipes, False, image, prefer))


def swesmith(row: Fields, prefer: Prefer) -> Task:
    """A row of SWE-smith: its ``patch`` is the bug, so the answer is the way back."""
    bug = row.text("patch")
    how = _how_in_image(row.text("image_name"), _SMITH_COMMAND)
    commit = row.text("base_commit", row.text("repo").rpartition(".")[2])
    return _task(
        row,
        _choose(row, None, False, how, prefer),
        base_patch=bug,
        patch=reverse_patch(bug),
        base_commit=commit,
    )


FAMILIES: dict[str, Callable[[Fields, Prefer], Task]] = {
    "swebench": swebench,
    "swegym": swegym,
    "swerebench": swerebench,
    "swesmith": swesmith,
}
