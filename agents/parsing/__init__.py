"""Text → action and back, one module a format; `get_format` finds one by name."""

from __future__ import annotations

from agents.parsing.base import ParseError, TextFormat, parse_reply
from swe_env.errors import ConfigError
from swe_env.plugins import Registry

formats: Registry[type[TextFormat]] = Registry(
    "formats",
    {
        "r2e": "agents.parsing.r2e:R2EFormat",
        "r2e-gym": "agents.parsing.r2e:R2EGymFormat",
        "json": "agents.parsing.json_calls:JSONFormat",
        "bash": "agents.parsing.bash:BashFormat",
    },
)
"""Classes without arguments, by name, entry point ``swe_env.formats`` or dotted path."""


def get_format(name: str | TextFormat) -> TextFormat:
    """The text format of that name; an object is given back as it is.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(name, str):
        return name
    made = formats.get(name)()
    if not callable(getattr(made, "parse", None)):
        raise ConfigError(f"The format {name!r} has no parse method: it is not a TextFormat.")
    return made


__all__ = ["ParseError", "TextFormat", "formats", "get_format", "parse_reply"]
