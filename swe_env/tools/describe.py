"""Tools as R2E's prompts write them, made from the same schemas that function calling gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def function_text(schemas: Sequence[Mapping[str, Any]]) -> str:
    """The functions one after another: description, then each parameter with its type.

    Args:
        schemas: the tools in OpenAI's function-calling form (`Toolset.schemas`).
    """
    return "\n\n".join(_function(n, schema["function"]) for n, schema in enumerate(schemas, 1))


def _function(number: int, function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters", {})
    required = parameters.get("required", ())
    lines = [
        f"–– BEGIN FUNCTION #{number}: {function['name']} ––",
        "Description:",
        function.get("description", ""),
        "",
        "Parameters:",
    ]
    properties = parameters.get("properties", {})
    for place, (name, entry) in enumerate(properties.items(), 1):
        needed = "required" if name in required else "optional"
        lines.append(f"  {place}. {name} ({kind(entry)}, {needed})")
        if "enum" in entry:
            lines.append(f"Allowed values: [{', '.join(map(str, entry['enum']))}]")
        if "description" in entry:
            lines.append(entry["description"])
    if not properties:
        lines.append("  None.")
    return "\n".join([*lines, "", f"–– END FUNCTION #{number} ––"])


def kind(entry: Mapping[str, Any]) -> str:
    """A parameter's JSON type in a word."""
    if "type" in entry:
        return str(entry["type"])
    if "enum" in entry:
        return "string"
    return " or ".join(str(one.get("type", "any")) for one in entry.get("anyOf", [{}]))
