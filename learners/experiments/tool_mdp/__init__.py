"""A deterministic tool-MDP that can be enumerated: does a loss learn the optimum it promises?"""

from learners.experiments.tool_mdp.run import Settings, run_tool_mdp

__all__ = ["Settings", "run_tool_mdp"]
