"""The `openai` policy: any OpenAI-compatible chat server (vLLM, SGLang, a vendor's API).

Calls are made by the server's function calling, or written in the reply in one of our text
formats. What the server says about tokens is recorded when it says it exactly.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents.parsing import TextFormat, get_format, parse_reply
from agents.parsing.base import ParseError, read_json
from agents.policies.base import BasePolicy, Episode, Turn
from agents.policies.openai_server import Server, finite, whole
from swe_env.errors import ModelError
from swe_env.replay.trajectory import Agent
from swe_env.types import INVALID_TOOL, Action, Completion

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

log = logging.getLogger(__name__)

_SYSTEM = (
    "Resolve the issue in the repository with the tools you are given. Make one call in each turn, "
    "after a short thought, and submit when you are done."
)
_NO_CALL = "The reply calls no tool. Make one tool call in each turn; submit when you are done."
_EMPTY = "(empty reply)"
"""Sent back for a reply without text or call: several servers refuse an empty message."""


class OpenAIPolicy(BasePolicy):
    """Asks a server for every turn; call `act` from many threads.

    Policies keep no state: each request carries the whole conversation, as the episode has it.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        format: str | TextFormat = "tools",
        temperature: float | None = 0.7,
        top_p: float | None = 0.8,
        top_k: int | None = None,
        max_new_tokens: int | None = None,
        logprobs: bool = False,
        token_ids: bool = False,
        extra: Mapping[str, Any] | None = None,
        prices: Sequence[float] | None = None,
        timeout: float = 300.0,
        retries: int = 3,
    ) -> None:
        """Make a client; nothing is asked before the first turn.

        Args:
            model: Name of the model at the server.
            base_url: The server's address, up to ``/v1``; None for ``OPENAI_BASE_URL``.
            api_key: None for ``OPENAI_API_KEY``; servers of one's own take anything.
            format: ``tools`` for the server's function calling, or how calls are written in the
                reply: a name of `agents.parsing.formats`, or a format.
            temperature: None leaves it, like each of the next three, to the server.
            top_p: Draw among the fewest tokens that hold this probability.
            top_k: Sent as vLLM and SGLang take it, outside OpenAI's own parameters.
            max_new_tokens: Most tokens of one reply.
            logprobs: Ask for the log-probability of every sampled token.
            token_ids: Ask for prompt and reply as token ids (vLLM's ``return_token_ids``); with
                `logprobs` too, turns are recorded token for token. The log-probabilities must be
                the unmodified model's (vLLM: ``--logprobs-mode raw_logprobs``, its default).
            extra: More fields of the request's body.
            prices: Dollars for a million tokens of prompt and of reply, for budgets.
            timeout: Seconds for one request: longer than the longest reply takes.
            retries: How often a request is sent again after a passing failure (`Server`). A server
                that hangs has failed after ``timeout * (retries + 1)``, 20 minutes.

        Raises:
            ConfigError: the package openai is missing, or no address or key is known.
        """
        self._server = Server(
            model, base_url=base_url, api_key=api_key, timeout=timeout, retries=retries,
            prices=prices,
        )  # fmt: skip
        self._format = None if format == "tools" else get_format(format)
        self._model = model
        self._token_ids = token_ids
        body: dict[str, Any] = {
            "top_k": top_k,
            "return_token_ids": True if token_ids else None,
            **(extra or {}),
        }
        request: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_new_tokens,
            "logprobs": True if logprobs else None,
        }
        self._request = {name: value for name, value in request.items() if value is not None}
        self._body = {name: value for name, value in body.items() if value is not None}
        self._agent = Agent(
            name="openai",
            version=importlib.metadata.version("openai"),
            model_name=model,
            settings={
                "format": self._format.name if self._format else "tools",
                **self._request,
                **self._body,
            },
        )

    @property
    def agent(self) -> Agent:
        """Model and all that changes its behaviour; neither the address nor the key."""
        return self._agent

    def system_prompt(self, tools: Sequence[dict[str, Any]]) -> str:
        """The format's; with function calling, one that leaves the tools to the server."""
        return self._format.system_prompt(tools) if self._format else _SYSTEM

    def act(self, episode: Episode) -> Action:
        """Ask for the next reply and read the call in it.

        Raises:
            EpisodeOver: the conversation is longer than the model's context (``tokens``).
            ModelError: the server did not answer, refused (a first prompt that is too long, too),
                or answered something else.
        """
        request: dict[str, Any] = {**self._request, "messages": self.messages(episode)}
        if self._format is None:
            request["tools"] = list(episode.tools)
        answer = self._server.ask(
            lambda: self._server.client.chat.completions.create(
                model=self._model,
                seed=(episode.seed + len(episode.turns)) % (1 << 31),
                extra_body=self._body,
                **request,
            ),
            turns=len(episode.turns),
        )
        with self._server.reading():
            choice = answer.choices[0]
            text, call = _said(choice.message)
            completion, usage = self._completion(answer), self._server.usage(answer)
        if self._format is not None:
            action = parse_reply(self._format, text)
        else:
            action = _action(call, text)
        if action["tool"] == INVALID_TOOL and choice.finish_reason == "length":
            action["arguments"] = {"reason": "The reply was cut off: write less before the call."}
        if completion:
            action["completion"] = completion
        if usage:
            action["usage"] = usage
        return action

    def messages(self, episode: Episode) -> list[Any]:
        """The conversation so far, as the chat API takes it."""
        said: list[Any] = [
            {"role": "system", "content": self.system_prompt(episode.tools)},
            {"role": "user", "content": episode.first["text"]},
        ]
        for number, turn in enumerate(episode.turns):
            said += self._turn(turn, f"call_{number}")
        return said

    def _turn(self, turn: Turn, call_id: str) -> list[Any]:
        action, seen = turn.action, turn.observation["text"]
        text = action.get("message", "")
        if self._format is not None:
            return [
                {"role": "assistant", "content": _some(_written(self._format, action))},
                {"role": "user", "content": seen},
            ]
        if action["tool"] == INVALID_TOOL:
            said = {"role": "assistant", "content": _some(text)}
            return [said, {"role": "user", "content": seen}]
        function = {"name": action["tool"], "arguments": json.dumps(action["arguments"])}
        call = {"id": call_id, "type": "function", "function": function}
        return [
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": seen},
        ]

    def _completion(self, answer: ChatCompletion) -> Completion | None:
        """Ids and log-probabilities, when the server gave both sides exactly."""
        if not self._token_ids:
            return None
        choice: Any = answer.choices[0]
        ids = getattr(choice, "token_ids", None)
        prompt = getattr(answer, "prompt_token_ids", None)
        if not ids or not prompt:
            raise ModelError(
                "The server gives no token ids: start it with a version that knows "
                "return_token_ids (vLLM 0.10.2 or later), or leave token_ids out."
            )
        found = Completion(token_ids=whole(ids), prompt_token_ids=whole(prompt))
        said = choice.logprobs.content if choice.logprobs else None
        if said and len(said) == len(ids):
            found["logprobs"] = finite([token.logprob for token in said])
        elif said:
            log.warning("%d log-probabilities for %d tokens: left out.", len(said), len(ids))
        return found


def _some(text: str) -> str:
    return text if text.strip() else _EMPTY


def _said(message: Any) -> tuple[str, tuple[str, str] | None]:
    """The reply's text, and its first call: a name, and arguments as they were written.

    One call a turn is taken, the others are as if never made.
    """
    text = message.content or ""
    call: tuple[str, str] | None = None
    if message.tool_calls:
        function = message.tool_calls[0].function
        call = function.name, function.arguments or "{}"
    for part in (text, *(call or ())):
        if not isinstance(part, str):
            raise TypeError(f"{part!r} where a text belongs")
    return text, call


def _action(call: tuple[str, str] | None, text: str) -> Action:
    """The call as an action.

    One that cannot be read goes into the message as text, so that the model sees what it wrote.
    """
    if call is None:
        return Action(tool=INVALID_TOOL, arguments={"reason": _NO_CALL}, message=text)
    name, written = call
    try:
        arguments = read_json(written)
        if not isinstance(arguments, dict):
            raise ParseError(f"a {type(arguments).__name__}")
    except ParseError as error:
        reason = f"The arguments of {name} are no JSON object ({error}): {written[:200]}"
        said = f"{text}\n{name} {written}".lstrip()
        return Action(tool=INVALID_TOOL, arguments={"reason": reason}, message=said)
    return Action(tool=name, arguments=arguments, message=text)


def _written(text_format: TextFormat, action: Action) -> str:
    """The reply that made this call, whoever wrote it."""
    try:
        return text_format.render(action)
    except ParseError:
        return action.get("message", "")
