"""Trajectories in other tools' forms, row by row; `write` puts a whole buffer into a file."""

from swe_env.replay.export.atif import ATIF, atif
from swe_env.replay.export.conversation import Message, first_state, messages
from swe_env.replay.export.llamafactory import (
    llamafactory_kto,
    llamafactory_preference,
    llamafactory_sft,
)
from swe_env.replay.export.predictions import preds
from swe_env.replay.export.trl import trl_kto, trl_preference, trl_sft
from swe_env.replay.export.write import FORMATS, Written, write

__all__ = [
    "ATIF",
    "FORMATS",
    "Message",
    "Written",
    "atif",
    "first_state",
    "llamafactory_kto",
    "llamafactory_preference",
    "llamafactory_sft",
    "messages",
    "preds",
    "trl_kto",
    "trl_preference",
    "trl_sft",
    "write",
]
