"""Checkouts, patches and Python environments: what a task runs on, built once and cached."""

from swe_env.repos.checkout import base, pristine
from swe_env.repos.commit import head
from swe_env.repos.environments import environment, interpreter
from swe_env.repos.patches import apply_patch, file_diff
from swe_env.repos.spec import ENVIRONMENT, sandbox_spec

__all__ = [
    "ENVIRONMENT",
    "apply_patch",
    "base",
    "environment",
    "file_diff",
    "head",
    "interpreter",
    "pristine",
    "sandbox_spec",
]
