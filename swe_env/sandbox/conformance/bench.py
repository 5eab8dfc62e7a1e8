"""What the checks of a sandbox work with: a small repository, sandboxes on it, expectations."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from swe_env.errors import ToolError
from swe_env.sandbox.base import Sandbox, SandboxFactory, SandboxSpec
from swe_env.types import ExecResult


@dataclass(slots=True)
class Bench:
    """What a check works with: sandboxes on a small repository made for it."""

    factory: SandboxFactory
    folder: Path
    opened: list[Sandbox] = field(default_factory=list)
    own_system: bool = False
    """See `check_sandbox`."""

    @property
    def base(self) -> Path:
        """The shared checkout."""
        return self.folder / "base"

    def start(self, **settings: object) -> Sandbox:
        """A sandbox that is closed after the check."""
        spec = SandboxSpec(base=self.base, **settings)  # type: ignore[arg-type]
        self.opened.append(self.factory(spec))
        return self.opened[-1]


def make_base(base: Path) -> None:
    """Make the repository that every check starts from."""
    (base / "pkg").mkdir(parents=True)
    (base / "pkg" / "mod.py").write_text("def f():\n    return 1\n")
    (base / "README").write_text("read me\n")
    (base / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (base / "run.sh").chmod(0o755)
    (base / "data.bin").write_bytes(bytes(range(256)))
    (base / "latin.txt").write_bytes("déjà\n".encode("latin-1"))
    (base / "link").symlink_to("pkg/mod.py")
    (base / ".gitignore").write_text("*.log\n")
    git(base, "init", "-q")
    git(base, "add", "-A")
    git(base, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "base")


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run git in `folder` without the user's settings."""
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    ran = subprocess.run(
        ["git", *arguments], cwd=folder, env=env, input=stdin, capture_output=True, check=False
    )
    if ran.returncode:
        raise AssertionError(f"git {arguments[0]}: {ran.stderr.decode('utf-8', 'replace').strip()}")
    return ran.stdout


def expect(condition: object, what: str, seen: object = "") -> None:
    """Fail with a sentence that tells the promise and what was seen."""
    if not condition:
        raise AssertionError(f"{what}; seen: {seen!r}" if seen != "" else what)


def said(result: ExecResult, text: str, code: int = 0) -> None:
    """Expect this output (surrounding white space apart) and exit code."""
    expect(
        result.output.strip() == text and result.exit_code == code,
        f"the command must print {text!r} and exit with {code}",
        result,
    )


def refused(call: Callable[[], object], what: str) -> None:
    """Expect a ToolError."""
    try:
        got = call()
    except ToolError:
        return
    raise AssertionError(f"{what} must raise ToolError; got {got!r}")
