"""The values that travel between tasks, environment, grading and recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A Python environment built once from pins and cached: how to run without Docker."""

    python: str = "3.11"
    """Version of the interpreter, "major.minor"."""
    requirements: tuple[str, ...] = ()
    """pip requirements, pinned; installed before anything else."""
    install: str = ""
    """Shell command run in the checkout when the environment is built; empty for pure Python."""
    pythonpath: tuple[str, ...] = (".",)
    """Folders of the checkout put on PYTHONPATH, relative to its root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A published container image whose checkout and environment are already inside."""

    name: str
    """Image reference, for example ``swebench/sweb.eval.x86_64.sympy_1776_sympy-20590``."""
    workdir: str = "/testbed"
    """Where the checkout lies in the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the repository's files come from."""

    kind: Literal["sdist", "git", "folder"]
    """A PyPI source distribution, a git repository, or a folder on this machine."""
    location: str
    """Distribution name, git URL (or ``owner/name``), or path."""
    version: str = ""
    """The sdist's version; unused for the others."""
    sha256: str = ""
    """The sdist's hash, hexadecimal; unused for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One issue to resolve, with SWE-bench's field names and how to run it.

    `patch`, `test_patch` and the two test lists are the answer: they never reach an observation or
    the workspace before grading. What an agent may know is `public()`.
    """

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    hints_text: str = ""
    patch: str = ""
    """Gold patch: unified diff from the agent's starting state."""
    test_patch: str = ""
    """Unified diff that puts the hidden tests into the starting state."""
    FAIL_TO_PASS: tuple[str, ...] = ()
    PASS_TO_PASS: tuple[str, ...] = ()
    version: str = ""
    source: Source | None = None
    base_patch: str = ""
    """Diff applied to `source` at `base_commit` to make the starting state (injected bug, hidden
    tests removed); empty for tasks mined from history."""
    environment: Recipe | Image = field(default_factory=Recipe)
    test_command: str = "python -m pytest"
    """Runs the visible tests from the checkout's root; test paths or ids are appended."""
    log_parser: str = "pytest"
    """Runner that knows how `test_command` reports: a name registered in `swe_env.grading`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What made the task: source spec, seed, operator, split, validation runs, quarantine."""

    def public(self) -> PublicTask:
        """What an agent may know of this task."""
        return PublicTask(
            instance_id=self.instance_id,
            repo=self.repo,
            base_commit=self.base_commit,
            problem_statement=self.problem_statement,
            hints_text=self.hints_text,
            version=self.version,
            test_command=self.test_command,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicTask:
    """The part of a task that an agent may know."""

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    hints_text: str
    version: str
    test_command: str


class Completion(TypedDict, total=False):
    """What the policy really sampled in one turn; recorded as it is, never re-tokenised."""

    token_ids: list[int]
    """Sampled ids, the end-of-turn token included when it was sampled."""
    logprobs: list[float]
    """Natural-log probability of each sampled id under the *unmodified* policy distribution
    (temperature 1, no top-k/top-p), same length as `token_ids`."""
    prompt_token_ids: list[int]
    """The whole prompt this turn was sampled from."""


class Usage(TypedDict, total=False):
    """What one turn of a policy took, as its server counts it."""

    prompt_tokens: int
    completion_tokens: int
    cost: float
    """Dollars."""


INVALID_TOOL = "invalid"
"""Tool name of an action made from a reply that could not be parsed; ``arguments["reason"]`` says
why and comes back as the observation."""


class Action(TypedDict, total=False):
    """A tool call; `tool` and `arguments` are required, the rest is recorded when given."""

    tool: str
    arguments: dict[str, Any]
    message: str
    completion: Completion
    usage: Usage
    """Counted by budgets; the episode's sums are recorded."""


class Observation(TypedDict):
    """What the agent gets back; the same bytes for the same seed and actions."""

    text: str
    tool: str
    """Tool that produced it; empty for the first observation (the issue)."""
    exit_code: int
    """0 success, 1 tool error or failing tests, else the command's own; -1 when it was killed or
    still runs."""
    steps_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """One command run in a sandbox."""

    exit_code: int
    """The command's own; -1 when it was killed (`timed_out`, `limit`) or still runs."""
    output: str
    """stdout and stderr as they interleaved, decoded as UTF-8 with replacement, capped in the
    middle: head and tail are kept with the number of characters left out between them."""
    timed_out: bool = False
    limit: str = ""
    """Name of the limit that struck ("memory", "processes", "disk", "output"), or empty."""
    channel: bytes = b""
    """What the command wrote to the result channel (see `Sandbox.exec`); empty otherwise."""
    running: bool = False
    """The command was left running (see `Sandbox.exec`); `output` is what it wrote so far."""


class Outcome:
    """Names of a test's outcome, as pytest has them; only PASSED and XFAIL count as a pass."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAIL = "xfailed"
    XPASS = "xpassed"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestReport:
    """The verdict on one patch."""

    __test__ = False  # pytest: not a test class

    resolved: bool
    """Every FAIL_TO_PASS and every PASS_TO_PASS test passed, and the run ended by itself."""
    fraction: float
    """Share of FAIL_TO_PASS tests that pass, 0 when any PASS_TO_PASS test broke; in [0, 1]."""
    fail_to_pass: dict[str, str]
    """Test id → outcome (a name of `Outcome`)."""
    pass_to_pass: dict[str, str]
    patch_applied: bool = True
    tampering: tuple[str, ...] = ()
    """What the patch or run did to the grading, one sentence each."""
    error: str = ""
    """Why the run did not finish by itself ("timed out after 60 s"), or empty."""
    seconds: float = 0.0
    """Time of the tests' own process, 0 where none was run for this verdict. In records, whose ids
    leave it out, never in an observation or in `info`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An infrastructure failure: excluded from learning and from scores."""

    kind: str
    message: str
