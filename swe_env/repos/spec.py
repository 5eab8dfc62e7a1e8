"""From a task to what a sandbox is started with."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from swe_env.cache import cache_dir
from swe_env.repos.checkout import base, with_files
from swe_env.repos.environments import (
    environment,
    import_roots,
    interpreter,
    left_in_checkout,
    prefix,
)
from swe_env.sandbox.base import Limits, SandboxSpec
from swe_env.types import Image, Task

ENVIRONMENT = "/opt/env"
"""Where the Python environment lies inside a sandbox."""


def sandbox_spec(task: Task, *, network: bool = False, limits: Limits | None = None) -> SandboxSpec:
    """What to start for a task: its base checkout and environment, both built once and cached.

    Values of `SandboxSpec.env` use ``{workdir}`` and ``{/opt/env}``: the path as the sandbox's
    commands see it, so the path inside for a sandbox with binds and the folder on this machine
    for one without.

    Raises:
        TaskError: the checkout cannot be made.
        RecipeError: the Python environment cannot be built.
    """
    limits = limits or Limits()
    if isinstance(task.environment, Image):
        return SandboxSpec(
            base=cache_dir("empty"),
            limits=limits,
            network=network,
            image=task.environment.name,
            workdir=task.environment.workdir,
            env=_plain(),
        )
    recipe = task.environment
    checkout = base(task)
    folder = environment(recipe, checkout)
    if (extra := left_in_checkout(folder)) is not None:
        checkout = with_files(checkout, extra)
    binds = {ENVIRONMENT: folder}
    home = prefix(interpreter(recipe.python))
    if not home.is_relative_to("/usr"):
        binds[str(home)] = home
    return SandboxSpec(
        base=checkout,
        env=_variables([*recipe.pythonpath, *import_roots(folder)]),
        binds=binds,
        hidden=_other_packages(home),
        limits=limits,
        network=network,
    )


@cache
def _other_packages(home: Path) -> tuple[str, ...]:
    """Folders of packages beside the task's environment; a copy of the task's own may be there."""
    roots = {Path("/usr"), Path("/usr/local"), home}
    found = (p for root in roots for p in root.glob("lib/python3*/*-packages") if p.is_dir())
    return tuple(sorted(str(path) for path in found))


def _plain() -> dict[str, str]:
    return {
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PAGER": "cat",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }


def _variables(pythonpath: list[str]) -> dict[str, str]:
    inside = "{" + ENVIRONMENT + "}"
    roots = list(dict.fromkeys(Path(part).as_posix() for part in pythonpath))
    paths = ["{workdir}" if part == "." else "{workdir}/" + part for part in roots]
    return {
        **_plain(),
        "PATH": f"{inside}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "VIRTUAL_ENV": inside,
        "PYTHONPATH": ":".join(paths),
        "PYTHONNOUSERSITE": "1",
    }
