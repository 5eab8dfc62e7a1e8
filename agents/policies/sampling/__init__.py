"""Sampling from a local model for many episodes at once: `Engine`, `Sampling`, `Sampled`."""

from agents.policies.sampling.draw import Sampling
from agents.policies.sampling.engine import Engine, Sampled, Stats

__all__ = ["Engine", "Sampled", "Sampling", "Stats"]
