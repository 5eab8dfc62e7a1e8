"""Log-probabilities and entropies of trajectories with no logits kept."""

from learners.ops.logps import token_logps
from learners.ops.packed import packed_logps, prepare
from learners.ops.packing import Packed, pack
from learners.ops.prefix import Forest, grow
from learners.ops.sequence import SequenceLogps, check_logits, sequence_logps

__all__ = [
    "Forest",
    "Packed",
    "SequenceLogps",
    "check_logits",
    "grow",
    "pack",
    "packed_logps",
    "prepare",
    "sequence_logps",
    "token_logps",
]
