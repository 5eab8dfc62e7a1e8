"""Who acts: policies, rollouts, selection among attempts, and a viewer."""

PROJECT = "swe-env"
"""Tells this package from the one of the same name that `openai-agents` installs."""
