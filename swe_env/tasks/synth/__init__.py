"""Tasks made from a package: bugs that really break its own tests, with those tests hidden."""

from swe_env.tasks.synth.generate import generate
from swe_env.tasks.synth.settings import Progress, Settings

__all__ = ["Progress", "Settings", "generate"]
