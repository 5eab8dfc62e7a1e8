"""`Prompting`: an episode as the token ids that its next reply is sampled from."""

from __future__ import annotations

from agents.chat import ChatTemplate, episode_messages
from agents.parsing import ParseError, TextFormat, parse_reply
from agents.policies.base import Episode, Turn
from swe_env.errors import ConfigError
from swe_env.types import Action

CONDENSED = "[an earlier observation of {} characters, left out to save room]"
"""What stands in a condensed prompt for an observation."""
THOUGHT = "</think>"
"""What ends a reply's reasoning: Qwen3, GLM-4.5 and DeepSeek-R1 agree on it."""


class Prompting:
    """A chat template and a text format, by which every turn's prompt is made.

    Prompts are never tokenised twice: a turn's prompt is the prompt before, the ids that were
    sampled, and what the template puts after them. A reply that ended without the end-of-turn token
    gets it in the next *prompt*: it is context, not something the policy is credited with.

    A condensed prompt is another one: old observations are replaced by a line each. The turns
    behind it go on from there. Without reasoning, every prompt is: what a reply thought before it
    spoke is left out of the prompts of later turns.
    """

    def __init__(
        self, chat: ChatTemplate, text_format: TextFormat, *, keep_reasoning: bool = True
    ) -> None:
        self.chat = chat
        self.format = text_format
        self._keep_reasoning = keep_reasoning

    def prompt(self, episode: Episode) -> list[int]:
        """Token ids the next reply is sampled from.

        Recorded ids are used as they are; a turn without them (taken by another policy) is
        tokenised from its text.
        """
        system = self.format.system_prompt(episode.tools)
        first = self.chat.prompt(episode_messages(system, episode.first["text"]))
        ids, turns = list(first), list(episode.turns)
        for index in range(len(turns) - 1, -1, -1):
            recorded = turns[index].action.get("completion", {}).get("prompt_token_ids", [])
            if recorded and recorded[: len(first)] == first:
                ids, turns = list(recorded), turns[index:]
                break
        for turn in turns:
            ids += self._reply(turn) + self.chat.observation(turn.observation["text"])
        return ids

    def prompt_within(
        self, episode: Episode, *, context: int, reply: int, condense: float | None
    ) -> list[int]:
        """The prompt, condensed if it leaves no room for a reply.

        Args:
            episode: Everything so far.
            context: Most tokens of prompt and reply.
            reply: Most tokens of a reply.
            condense: The share of the context that a condensed prompt fills at most, if the last
                observation and what cannot be left out allow it; None for never.
        """
        ids = self.prompt(episode)
        if condense is None or len(ids) + reply <= context:
            return ids
        return self._condensed(episode, int(condense * context))

    def _condensed(self, episode: Episode, most: int) -> list[int]:
        """Without the oldest observations, as many as must go for `most` tokens."""
        system = self.format.system_prompt(episode.tools)
        first = self.chat.prompt(episode_messages(system, episode.first["text"]))
        texts = [turn.observation["text"] for turn in episode.turns]
        replies = [self._reply(turn) for turn in episode.turns]
        answers = [self.chat.observation(text) for text in texts]
        total = len(first) + sum(map(len, replies)) + sum(map(len, answers))
        for turn, text in enumerate(texts[:-1]):
            if total <= most:
                break
            note = self.chat.observation(CONDENSED.format(f"{len(text):,}"))
            if len(note) < len(answers[turn]):
                total -= len(answers[turn]) - len(note)
                answers[turn] = note
        return first + [
            i for pair in zip(replies, answers, strict=True) for ids in pair for i in ids
        ]

    def _reply(self, turn: Turn) -> list[int]:
        """Ids of a turn's reply, closed by an end-of-turn token whether it was sampled or not."""
        action = turn.action
        ids = list(action.get("completion", {}).get("token_ids", []))
        text = action.get("message", "") if ids else self._said(action)
        if not self._keep_reasoning and THOUGHT in text:
            return self.chat.completion(text.rpartition(THOUGHT)[2].lstrip("\n"))
        if not ids:
            return self.chat.completion(text)
        return ids if ids[-1] == self.chat.end_of_turn else [*ids, self.chat.end_of_turn]

    def _said(self, action: Action) -> str:
        """Text of a reply that was not sampled: its message when that holds the call already."""
        message = action.get("message", "")
        if parse_reply(self.format, message)["tool"] == action["tool"]:
            return message
        try:
            return self.format.render(action)
        except ParseError:
            return message


def check_condense(condense: float | None, context: int | None) -> None:
    """Say what is wrong with the setting, if anything is.

    Raises:
        ConfigError: it is no share, or of a context that is not known.
    """
    if condense is None:
        return
    if not 0 < condense < 1:
        raise ConfigError(f"condense is a share of the context, between 0 and 1, not {condense}.")
    if context is None:
        raise ConfigError("condense is a share of the context: give context, in tokens, too.")
