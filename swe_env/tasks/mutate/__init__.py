"""Bugs as text edits located by the AST: the file's formatting and comments stay as they are."""

from swe_env.tasks.mutate.base import Edit, Operator, Scope, Text, apply_edits, operators
from swe_env.tasks.mutate.candidates import Candidate, candidates, distinct

__all__ = [
    "Candidate",
    "Edit",
    "Operator",
    "Scope",
    "Text",
    "apply_edits",
    "candidates",
    "distinct",
    "operators",
]
