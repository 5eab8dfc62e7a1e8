"""`check_sandbox`: proves that a kind of sandbox keeps every promise of the `Sandbox` protocol."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from swe_env.errors import SandboxError, ToolError
from swe_env.sandbox.base import SandboxFactory
from swe_env.sandbox.conformance import isolation, promises
from swe_env.sandbox.conformance.bench import Bench, make_base

__all__ = ["check_sandbox"]


def check_sandbox(
    factory: SandboxFactory, *, isolated: bool = True, own_system: bool = False
) -> list[str]:
    """Run every check on sandboxes of this kind; the names of the checks passed.

    Args:
        factory: starts the sandboxes.
        isolated: False for a kind that promises no isolation.
        own_system: the kind gives each sandbox system files of its own (a container image), which
            commands may see and change for themselves; without, there is this machine's system,
            of which they see little and change nothing.

    Raises:
        AssertionError: lists each promise that was not kept, with what was seen instead.
    """
    if reason := factory.available():
        raise AssertionError(f"The sandbox does not work on this machine: {reason}")
    checks = {**promises.ALL, **(isolation.ALL if isolated else {})}
    seen = (_run(name, check, factory, own_system) for name, check in checks.items())
    failures = [text for text in seen if text]
    if failures:
        raise AssertionError(
            f"{len(failures)} of {len(checks)} promises of a sandbox are not kept:\n"
            + "\n".join(failures)
        )
    return list(checks)


def _run(
    name: str, check: Callable[[Bench], None], factory: SandboxFactory, own_system: bool
) -> str:
    with tempfile.TemporaryDirectory(prefix="check-sandbox-") as folder:
        bench = Bench(factory, Path(folder), own_system=own_system)
        make_base(bench.base)
        try:
            check(bench)
        except (AssertionError, SandboxError, ToolError, OSError, ValueError) as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            return f"- {name}: {error or line}"
        finally:
            for sandbox in bench.opened:
                with contextlib.suppress(SandboxError):
                    sandbox.close()
    return ""
