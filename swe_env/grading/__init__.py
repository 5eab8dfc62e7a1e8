"""Run the tests, read the results where code under test cannot forge them, give the verdict."""

from swe_env.grading.runs import PASSING, Runner, TestRun, run_tests, runners
from swe_env.grading.verdict import grade

__all__ = ["PASSING", "Runner", "TestRun", "grade", "run_tests", "runners"]
