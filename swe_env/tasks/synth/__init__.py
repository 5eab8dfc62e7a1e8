"""Tasks made from a package: bugs that really break its own tests, with those tests hidden."""

from swe_env.tasks.synth.generate import Progress, Settings, generate

__all__ = ["Progress", "Settings", "generate"]
