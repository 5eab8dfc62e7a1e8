"""The demo: the whole loop on real packages, on a laptop."""

from learners.experiments.demo.pipeline import run_demo
from learners.experiments.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
