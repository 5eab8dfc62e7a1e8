"""Log-probabilities and entropies of trajectories with no logits kept."""

from learners.ops.logps import token_logps
from learners.ops.sequence import SequenceLogps, check_logits, sequence_logps

__all__ = ["SequenceLogps", "check_logits", "sequence_logps", "token_logps"]
