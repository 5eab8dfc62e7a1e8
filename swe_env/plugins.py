"""One registry per kind of plug-in: by decorator, by entry point, or by dotted path.

`Registry("tools")` looks a name up in this order: what a decorator registered, the entry-point
group ``swe_env.tools``, then ``package.module:attribute``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from swe_env.errors import ConfigError

T = TypeVar("T")
_LABELS = {"losses": "loss", "policies": "policy", "tasks": "task source"}


class Registry(Generic[T]):
    """Names → objects of one kind (tools, policies, losses, task sources, runners …)."""

    def __init__(self, kind: str, builtin: dict[str, str] | None = None) -> None:
        """`builtin` maps names to ``module:attribute``, imported only when asked for."""
        self.kind = kind
        self.label = _LABELS.get(kind, kind.removesuffix("s"))
        self._builtin = dict(builtin or {})
        self._objects: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: ``@tools.register("lint")``."""

        def add(obj: T) -> T:
            self._objects[name] = obj
            return obj

        return add

    def names(self) -> list[str]:
        """Every known name, sorted; nothing is imported."""
        found = set(self._objects) | set(self._builtin)
        return sorted(found | {point.name for point in self._entry_points()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> T:
        """The object of that name.

        Raises:
            ConfigError: the name is unknown or cannot be imported; says what was near.
        """
        if name in self._objects:
            return self._objects[name]
        target = self._builtin.get(name)
        if target is None:
            points = [point for point in self._entry_points() if point.name == name]
            target = points[0].value if points else name if ":" in name else None
        if target is None:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(self.names())}."
            raise ConfigError(f"There is no {self.label} named {name!r}.{hint}")
        module, _, attribute = target.partition(":")
        try:
            found: T = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"The {self.label} {name!r} could not be imported from {target!r}: {error}."
            ) from error
        self._objects[name] = found
        return found

    def _entry_points(self) -> tuple[importlib.metadata.EntryPoint, ...]:
        return tuple(importlib.metadata.entry_points(group=f"swe_env.{self.kind}"))
