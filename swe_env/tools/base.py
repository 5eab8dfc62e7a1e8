"""What a tool is: a typed function with a docstring; `toolset` offers several by name."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import msgspec

from swe_env.errors import ToolError
from swe_env.grading.runs import TestRun
from swe_env.plugins import Registry
from swe_env.sandbox.base import WORKDIR, Sandbox
from swe_env.tools import schema as schemas
from swe_env.tools.text import printable
from swe_env.types import PublicTask


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """What a tool may use; one for each episode."""

    sandbox: Sandbox
    task: PublicTask
    run_tests: Callable[[Sequence[str]], TestRun]
    """Runs the visible tests on paths or ids (none: all)."""
    command_timeout: float = 60.0
    """Seconds a command may take unless it asks for less."""
    output_limit: int = 16_000
    """Characters of a result that reach the model."""
    state: dict[str, Any] = field(default_factory=dict)
    """What tools remember within the episode, copied when it forks: put immutable values in."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answers."""

    text: str
    exit_code: int = 0
    """0 success, 1 tool error or failing tests, else a command's own; -1 when it was killed or
    still runs."""
    submitted: bool = False
    """Ends the episode: the work is handed in."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool by name, with its schema."""

    name: str
    description: str
    parameters: tuple[schemas.Parameter, ...]
    function: Callable[..., ToolResult | str]
    samples: tuple[Mapping[str, Any], ...] = ()
    """Arguments of harmless calls: what `action_space.sample()` may draw."""
    also: tuple[str, ...] = ()
    """Other names that it answers to; no schema tells them."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of arguments; the empty name takes one and leaves it aside."""

    @property
    def schema(self) -> dict[str, Any]:
        """OpenAI's function-calling form."""
        return schemas.schema(self.name, self.description, self.parameters)

    def __call__(self, ctx: ToolContext, arguments: Mapping[str, Any]) -> ToolResult:
        """Check the arguments and run the tool.

        Raises:
            ToolError: the arguments are wrong, or the tool says why it cannot do it.
        """
        given = {self.aliases.get(key, key): value for key, value in arguments.items()}
        given.pop("", None)
        answer = self.function(ctx, **schemas.bind(self.name, self.parameters, given))
        return answer if isinstance(answer, ToolResult) else ToolResult(answer)


ToolFunction = Callable[..., ToolResult | str]

tools: Registry[Tool] = Registry(
    "tools",
    {
        name: f"swe_env.tools.{module}:{name}"
        for module, names in {
            "view": ("view",),
            "structure": ("outline",),
            "edit": ("edit",),
            "edit_lines": ("edit_lines",),
            "apply_diff": ("apply_diff",),
            "undo": ("undo",),
            "search": ("search",),
            "bash": ("bash",),
            "run_tests": ("run_tests",),
            "submit": ("submit",),
        }.items()
        for name in names
    },
)
"""Tools by name."""

presets: Registry[tuple[str, ...]] = Registry("toolsets", {"r2e": "swe_env.tools.r2e:R2E"})
"""Sets of tools by name."""

DEFAULT = presets.register("default")(("view", "edit", "search", "bash", "run_tests", "submit"))
FULL = presets.register("full")(
    (
        "view",
        "outline",
        "search",
        "edit",
        "edit_lines",
        "apply_diff",
        "undo",
        "bash",
        "run_tests",
        "submit",
    )
)


@overload
def tool(function: ToolFunction) -> Tool: ...
@overload
def tool(
    *,
    name: str = "",
    register: bool = True,
    samples: Sequence[Mapping[str, Any]] = (),
    also: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> Callable[[ToolFunction], Tool]: ...
def tool(
    function: ToolFunction | None = None,
    *,
    name: str = "",
    register: bool = True,
    samples: Sequence[Mapping[str, Any]] = (),
    also: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> Tool | Callable[[ToolFunction], Tool]:
    """Make a tool of a typed function whose first argument is the `ToolContext`.

    The docstring's text describes the tool to the model, its ``Args`` section the arguments. The
    tool can then be asked for by its name; with ``register=False`` only by its dotted path.
    `samples` are arguments of calls that change nothing, for ``action_space.sample()``; `also` and
    `aliases` are names that models of another scaffold may use for the tool and its arguments.

    Raises:
        ConfigError: an argument has no type.
    """

    def make(wrapped: ToolFunction) -> Tool:
        called = name or wrapped.__name__
        description = schemas.docstring(wrapped)[0]
        parameters = schemas.parameters(wrapped)
        made = Tool(
            called,
            description,
            parameters,
            wrapped,
            tuple(samples),
            tuple(also),
            dict(aliases or {}),
        )
        return tools.register(called)(made) if register else made

    return make if function is None else make(function)


@dataclass(frozen=True, slots=True)
class Toolset:
    """The tools offered in an episode, in order."""

    tools: tuple[Tool, ...]
    _schemas: bytes = field(init=False, repr=False, compare=False)
    """As JSON: they are asked for at every step, and each asker gets its own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_schemas", msgspec.json.encode([t.schema for t in self.tools]))

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names."""
        return tuple(tool.name for tool in self.tools)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's function-calling form."""
        schemas: list[dict[str, Any]] = msgspec.json.decode(self._schemas)
        return schemas

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Harmless calls, as actions; a set without any has one that only asks for help."""
        calls = [
            {"tool": tool.name, "arguments": dict(arguments)}
            for tool in self.tools
            for arguments in tool.samples
        ]
        return calls or [{"tool": "help", "arguments": {}}]

    def call(self, ctx: ToolContext, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool; what the model did wrong comes back as a result with exit code 1.

        Raises:
            InfrastructureError: the sandbox or the grading machinery failed, not the call.
        """
        found = next((tool for tool in self.tools if tool.name == name), None)
        found = found or next((tool for tool in self.tools if name in tool.also), None)
        if found is None:
            known = ", ".join(self.names)
            return ToolResult(f"Error: there is no tool {name!r}. Tools: {known}.", 1)
        try:
            result = found(ctx, arguments)
        except ToolError as error:
            result = ToolResult(f"Error: {error}", 1)
        return replace(result, text=shorten(printable(result.text), ctx.output_limit))


def toolset(names: str | Sequence[str] = "default") -> Toolset:
    """The tools of these names; a preset's name ("default", "r2e") stands for its tools.

    Raises:
        ConfigError: a name is unknown; says what was near.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    flat: list[str] = []
    for name in wanted:
        flat.extend(presets.get(name) if name in presets.names() else [name])
    return Toolset(tuple(tools.get(name) for name in dict.fromkeys(flat)))


def inside(ctx: ToolContext, path: str) -> str:
    """A path relative to the repository's root and normalised; the root as the empty path."""
    for root in (ctx.sandbox.workdir, WORKDIR):
        if path == root or path.startswith(f"{root}/"):
            path = path[len(root) + 1 :]
            break
    path = posixpath.normpath(path) if path else ""
    return "" if path == "." else path


def shorten(text: str, limit: int) -> str:
    r"""`text`, with its middle left out when it is longer than `limit` characters.

    >>> shorten("a" * 50 + "b" * 50, 20)
    'aaaaaaaaaa\n[... 80 characters left out ...]\nbbbbbbbbbb'
    """
    if len(text) <= limit:
        return text
    head = (limit + 1) // 2
    tail = limit - head
    left_out = len(text) - limit
    return f"{text[:head]}\n[... {left_out} characters left out ...]\n{text[len(text) - tail :]}"
