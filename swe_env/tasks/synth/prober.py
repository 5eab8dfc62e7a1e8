"""Client of the test server: a scratch copy of the package and its Python, ready to fork."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from swe_env.errors import TaskError
from swe_env.tasks.synth.settings import Settings

_SCRIPT = Path(__file__).with_name("probe.py")


class Answer(msgspec.Struct, frozen=True):
    """What one run of tests said."""

    outcomes: dict[str, str] = {}
    durations: dict[str, float] = {}
    calls: dict[str, int] = {}
    """Test id → calls it made, of Python and of C; all tests together under "" without coverage."""
    failures: dict[str, dict[str, object]] = {}
    """Test id → facts of its failure (see `facts.of`)."""
    broken: dict[str, str] = {}
    """Test file that could not be collected → the last line of why."""
    contexts: dict[str, dict[str, list[str]]] = {}
    """File → line → ids of the tests that ran it."""
    code: int = 0
    died: str = ""
    """``timeout`` or ``crash`` when the run did not end by itself."""

    def passed(self) -> set[str]:
        """Ids of the tests that passed."""
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}

    def failed(self) -> set[str]:
        """Ids of the tests that failed or could not be set up."""
        return {test for test, outcome in self.outcomes.items() if outcome in ("failed", "error")}


class Prober:
    """Runs tests in an own copy of a checkout; files are changed and put back between runs."""

    def __init__(
        self,
        checkout: Path,
        environment: Path,
        *,
        roots: Sequence[str] = (".",),
        options: Sequence[str] = Settings().pytest_options,
        seed: int = 0,
    ) -> None:
        """Copy the checkout and start the server.

        Args:
            checkout: pristine files.
            environment: Python environment with pytest and coverage.
            roots: folders of the checkout on PYTHONPATH.
            options: of every run of pytest.
            seed: PYTHONHASHSEED.
        """
        self._options = tuple(options)
        self._temporary = tempfile.TemporaryDirectory(prefix="swe-env-probe-")
        work = Path(self._temporary.name).resolve()
        self.root = work / "testbed"
        ignore = shutil.ignore_patterns(".git")
        shutil.copytree(checkout, self.root, symlinks=True, ignore=ignore)
        (work / "home").mkdir()
        self._basetemp = work / "tmp"
        python = environment / "bin" / "python"
        variables = {
            "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(work / "home"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONHASHSEED": str(seed),
            "PYTHONPATH": ":".join(str(self.root / part) for part in roots),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPYCACHEPREFIX": str(work / "pycache"),
            "PYTHONNOUSERSITE": "1",
            # Python 3.14's default measurement core cannot tell which test ran a line.
            "COVERAGE_CORE": "ctrace",
        }
        self._server = subprocess.Popen(
            [str(python), str(_SCRIPT)],
            cwd=work,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        targets: Sequence[str] = (),
        *,
        timeout: float,
        cover: bool = False,
        details: int = 0,
        warm: bool = False,
    ) -> Answer:
        """Run tests by path or id.

        Args:
            targets: what to run; everything when empty.
            timeout: seconds of processor time until it is killed (four times that on the clock).
            cover: record which test runs which line.
            details: of how many failures to keep the facts.
            warm: keep compiled files for later runs; only while no file is changed.

        Raises:
            TaskError: the server itself broke.
        """
        options = ["-q", "--tb=no", *self._options, f"--basetemp={self._basetemp}"]
        request = {
            "cwd": str(self.root),
            "args": [*options, "--continue-on-collection-errors", *targets],
            "timeout": timeout,
            "cover": cover,
            "details": details,
            "warm": warm,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        assert self._server.stderr is not None
        try:
            self._server.stdin.write(msgspec.json.encode(request).decode() + "\n")
            self._server.stdin.flush()
            line = self._server.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._server.stderr.read().strip().splitlines()
            raise TaskError(
                f"The package's tests cannot be run: {said[-1] if said else 'no word'}."
            )
        return msgspec.json.decode(line, type=Answer)

    def close(self) -> None:
        """Stop the server and drop the copy; safe to call twice."""
        if self._server.poll() is None:
            self._server.kill()
        self._server.communicate()
        self._temporary.cleanup()

    def __enter__(self) -> Prober:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
