"""Wrappers around the environment: recording and limits."""

from swe_env.wrappers.limits import GradeOnTimeLimit
from swe_env.wrappers.record import RecordTrajectory

__all__ = ["GradeOnTimeLimit", "RecordTrajectory"]
