"""`Prompting`: an episode as the token ids that its next reply is sampled from."""

from __future__ import annotations

from agents.chat import ChatTemplate, episode_messages
from agents.parsing import ParseError, TextFormat, parse_reply
from agents.policies.base import Episode, Turn
from swe_env.types import Action


class Prompting:
    """A chat template and a text format, by which every turn's prompt is made.

    Prompts are never tokenised twice: a turn's prompt is the prompt before, the ids that were
    sampled, and what the template puts after them. A reply that ended without the end-of-turn token
    gets it in the next *prompt*: it is context, not something the policy is credited with.
    """

    def __init__(self, chat: ChatTemplate, text_format: TextFormat) -> None:
        self.chat = chat
        self.format = text_format

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

    def _reply(self, turn: Turn) -> list[int]:
        """Ids of a turn's reply, closed by an end-of-turn token whether it was sampled or not."""
        action = turn.action
        ids = list(action.get("completion", {}).get("token_ids", []))
        if not ids:
            return self.chat.completion(self._said(action))
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
