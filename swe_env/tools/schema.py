"""A tool's schema and argument checks, both from the function's signature and docstring."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from swe_env.errors import ConfigError, ToolError

_SECTION = re.compile(r"^(Args|Returns|Raises|Example|Examples|Note|Yields):\s*$")
_ARGUMENT = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")
_NOTHING = frozenset({"", "none", "null"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a tool."""

    name: str
    type: Any
    required: bool
    default: Any
    description: str


def parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The function's arguments after `ctx`, described by its docstring.

    Raises:
        ConfigError: an argument has no type annotation.
    """
    hints = typing.get_type_hints(function)
    described = docstring(function)[1]
    found = []
    for name, argument in list(inspect.signature(function).parameters.items())[1:]:
        if name not in hints:
            raise ConfigError(
                f"Argument {name!r} of the tool {function.__name__!r} has no type: annotate it, "
                "the schema is made from the annotations."
            )
        required = argument.default is inspect.Parameter.empty
        found.append(
            Parameter(
                name,
                hints[name],
                required,
                None if required else argument.default,
                described.get(name, ""),
            )
        )
    return tuple(found)


def docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """(description, argument → its text) from a Google-style docstring, in single lines."""
    head: list[str] = []
    arguments: dict[str, str] = {}
    section, current = "", ""
    for line in inspect.cleandoc(function.__doc__ or "").splitlines():
        match = _SECTION.match(line)
        if match:
            section = match.group(1)
        elif not section:
            head.append(line.strip())
        elif section == "Args" and line.strip():
            named = _ARGUMENT.match(line.strip()) if len(line) - len(line.lstrip()) <= 4 else None
            if named:
                current = named.group(1)
                arguments[current] = named.group(2)
            elif current:
                arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    return " ".join(" ".join(head).split()), arguments


def schema(name: str, description: str, arguments: tuple[Parameter, ...]) -> dict[str, Any]:
    """The tool in OpenAI's function-calling form."""
    properties: dict[str, Any] = {}
    for parameter in arguments:
        entry = dict(msgspec.json.schema(_without_none(parameter.type)))
        if parameter.description:
            entry["description"] = parameter.description
        if not parameter.required and parameter.default not in (None, ""):
            entry["default"] = parameter.default
        properties[parameter.name] = entry
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": [p.name for p in arguments if p.required],
                "additionalProperties": False,
            },
        },
    }


def bind(name: str, arguments: tuple[Parameter, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments as the function's types want them.

    Text formats give everything as text, so ``"12"`` serves as 12 and ``"[1, 40]"`` as a list.

    Raises:
        ToolError: an argument is missing, unknown or of the wrong kind; says which and shows the
            call's form.
    """
    if not isinstance(given, Mapping):
        raise ToolError(f"The arguments of {name} must be an object. {_form(name, arguments)}")
    known = {parameter.name: parameter for parameter in arguments}
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ToolError(f"{name} has no argument {str(unknown[0])!r}. {_form(name, arguments)}")
    bound: dict[str, Any] = {}
    for parameter in arguments:
        if parameter.name in given:
            try:
                _check_text(given[parameter.name])
                bound[parameter.name] = _convert(given[parameter.name], parameter)
            except (msgspec.ValidationError, ValueError) as error:
                raise ToolError(
                    f"{name}: the argument {parameter.name!r} is wrong: {error}. "
                    f"{_form(name, arguments)}"
                ) from error
        elif parameter.required:
            raise ToolError(
                f"{name} needs the argument {parameter.name!r}. {_form(name, arguments)}"
            )
    return bound


def _check_text(value: Any) -> None:
    r"""Half a character, as JSON's ``\ud800`` gives, is nothing that a file or command can hold."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"it holds half a character ({error.object[error.start]!r}) that is no valid Unicode"
        ) from None


def _convert(value: Any, parameter: Parameter) -> Any:
    wanted = parameter.type
    if value is None and not parameter.required:
        return parameter.default
    if isinstance(value, str) and not _takes_text(wanted):
        if value.strip().lower() in _NOTHING and not parameter.required:
            return parameter.default
        try:
            return msgspec.convert(value.strip(), wanted, strict=False)
        except msgspec.ValidationError:
            try:
                return msgspec.convert(json.loads(value), wanted, strict=False)
            except json.JSONDecodeError:
                raise ValueError(f"expected {_kind(wanted)}, got {value[:80]!r}") from None
    return msgspec.convert(value, wanted, strict=False)


def _takes_text(wanted: Any) -> bool:
    return wanted is str or str in typing.get_args(wanted)


def _without_none(wanted: Any) -> Any:
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        rest = tuple(kind for kind in typing.get_args(wanted) if kind is not type(None))
        if len(rest) < len(typing.get_args(wanted)):
            return typing.Union[rest]  # noqa: UP007 - built at run time
    return wanted


def _kind(wanted: Any) -> str:
    plain = _without_none(wanted)
    return plain.__name__ if isinstance(plain, type) and not typing.get_args(plain) else str(plain)


def _form(name: str, arguments: tuple[Parameter, ...]) -> str:
    shown = ", ".join(
        f"{p.name}: {_kind(p.type)}" + ("" if p.required else " (optional)") for p in arguments
    )
    return f"Its form: {name}({shown})."
