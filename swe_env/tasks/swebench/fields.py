"""Typed access to a row's fields; a wrong one is one sentence with its place and name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from swe_env.errors import TaskError


class Fields:
    """A row, field by field."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """`where` names the row in messages: ``lite.jsonl, row 3``."""
        self.values = values
        self.where = where

    def wrong(self, name: str, said: str) -> TaskError:
        """The error that says what is wrong with a field."""
        return TaskError(f"{self.where}: field {name!r}: {said}.")

    def has(self, name: str) -> bool:
        """Whether the field is there and not empty."""
        return self.values.get(name) not in (None, "", [], {})

    def text(self, name: str, default: str | None = None) -> str:
        """A text field.

        Raises:
            TaskError: it is missing and has no default, or is no text.
        """
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self.wrong(name, "it is missing")
            return default
        if not isinstance(value, str):
            raise self.wrong(name, f"expected text, got {type(value).__name__}")
        return value

    def tests(self, name: str) -> tuple[str, ...]:
        """A list of test ids, as a list or as JSON text; empty when it is not there.

        Raises:
            TaskError: it is neither.
        """
        value = self.values.get(name)
        if isinstance(value, str):
            value = self.json(name)
        try:
            found: tuple[str, ...] = msgspec.convert(value or (), tuple[str, ...])
        except msgspec.ValidationError as error:
            raise self.wrong(name, f"expected a list of test ids, {_said(error)}") from error
        return found

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, as such or as JSON text; empty when it is not there.

        Raises:
            TaskError: it is neither.
        """
        value = self.values.get(name)
        if isinstance(value, str):
            value = self.json(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, f"expected an object, got {type(value).__name__}")
        return value or {}

    def json(self, name: str) -> Any:
        """What a text field holds as JSON.

        Raises:
            TaskError: it is not JSON.
        """
        try:
            return msgspec.json.decode(self.text(name, "") or "null")
        except msgspec.DecodeError as error:
            raise self.wrong(name, f"it is not JSON ({_said(error)})") from error

    def rest(self, *known: str) -> dict[str, Any]:
        """The other fields, those that JSON can hold, for `Task.metadata`."""
        kept = {key: value for key, value in self.values.items() if key not in known}
        return msgspec.to_builtins(kept, str_keys=True)  # type: ignore[no-any-return]


def _said(error: Exception) -> str:
    message = str(error).partition(" - at `$")[0].rstrip(".")
    return message[:1].lower() + message[1:]
