"""Trajectories → pairs, KTO and SFT rows → tokens with exact loss masks."""

from learners.data.encode import Encoded, encode
from learners.data.report import DropReport, Unusable
from learners.data.select import Pair, Row, kto_rows, pairs, sft_rows

__all__ = [
    "DropReport",
    "Encoded",
    "Pair",
    "Row",
    "Unusable",
    "encode",
    "kto_rows",
    "pairs",
    "sft_rows",
]
