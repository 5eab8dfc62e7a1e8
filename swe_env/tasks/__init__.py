"""Tasks: where they come from, how they are written down, how they are proven."""

from swe_env.tasks.rows import dump
from swe_env.tasks.sources import TaskSource, find, load, sources

__all__ = ["TaskSource", "dump", "find", "load", "sources"]
