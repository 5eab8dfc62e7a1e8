"""Sampling from a local model for many episodes at once: `Engine`, `Sampling`, `Sampled`."""

from agents.policies.sampling.draw import Sampling
from agents.policies.sampling.engine import Engine, Sampled, Stats
from agents.policies.sampling.packed import can_pack, pack_linear

__all__ = ["Engine", "Sampled", "Sampling", "Stats", "can_pack", "pack_linear"]
