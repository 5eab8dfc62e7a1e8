"""Other agents' trajectories as ours."""

from swe_env.replay.imports.add import add
from swe_env.replay.imports.read import FORMATS, Imported, read

__all__ = ["FORMATS", "Imported", "add", "read"]
