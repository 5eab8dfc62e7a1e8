"""The `openai-completions` policy: a server's ``/v1/completions``, asked with token ids.

The prompt is made here, with the model's own tokenizer and chat template, so that what the server
sampled from is known to the token. That makes its rollouts as exact as the `transformers` policy's.

A server stops at a format's stop string wherever it stands: a call whose argument holds r2e's
``</function>`` is cut off there and comes back as a malformed one.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import ChatTemplate
from agents.parsing import TextFormat, get_format, parse_reply
from agents.policies import hub
from agents.policies.base import BasePolicy, Episode, EpisodeOver, context_full
from agents.policies.openai_server import Server, finite, whole
from agents.policies.prompting import Prompting, check_condense
from swe_env.errors import ModelError
from swe_env.replay.trajectory import Agent
from swe_env.types import INVALID_TOOL, Action, Completion

if TYPE_CHECKING:
    from openai.types import Completion as Answer


class OpenAICompletionsPolicy(BasePolicy):
    """Samples replies at a completions server; call `act` from many threads."""

    def __init__(
        self,
        model: str,
        tokenizer: str | Path,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        format: str | TextFormat = "r2e",
        temperature: float | None = 0.7,
        top_p: float | None = 0.8,
        top_k: int | None = None,
        max_new_tokens: int = 1024,
        context: int | None = None,
        condense: float | None = None,
        keep_reasoning: bool = True,
        token_ids: bool = True,
        logprobs: bool = True,
        extra: Mapping[str, Any] | None = None,
        prices: Sequence[float] | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        chat_template: str | Path | None = None,
    ) -> None:
        """Load the tokenizer and make a client; nothing is asked before the first turn.

        Args:
            model: Name of the model at the server.
            tokenizer: The same model's tokenizer: a folder, a hub id, or ``smollm2``.
            base_url: The server's address, up to ``/v1``; None for ``OPENAI_BASE_URL``.
            api_key: None for ``OPENAI_API_KEY``; servers of one's own take anything.
            format: How calls are written: a name of `agents.parsing.formats`, or a format.
            temperature: None leaves it, like each of the next two, to the server.
            top_p: Draw among the fewest tokens that hold this probability.
            top_k: Sent as vLLM and SGLang take it, outside OpenAI's own parameters.
            max_new_tokens: Most tokens of one reply.
            context: Most tokens of a prompt and its reply; None to let the server say when it is
                full.
            condense: Where a prompt leaves no room for a reply of `max_new_tokens`, replace old
                observations by a line each until this share of `context` is used; None lets the
                episode end.
            keep_reasoning: False leaves what earlier replies thought, up to ``</think>``, out of
                prompts, as the templates of Qwen3 and GLM-4.5 do.
            token_ids: Ask for the sampled ids as vLLM gives them (``return_token_ids``). Without,
                a record has texts alone.
            logprobs: Ask for the log-probability of every sampled token; recorded only beside ids.
                They must be the unmodified model's (vLLM: ``--logprobs-mode raw_logprobs``, its
                default).
            extra: More fields of the request's body.
            prices: Dollars for a million tokens of prompt and of reply, for budgets.
            timeout: Seconds for one request: longer than the longest reply takes.
            retries: How often a request is sent again after a passing failure (`Server`). A server
                that hangs has failed after ``timeout * (retries + 1)``, 20 minutes.
            chat_template: In place of the tokenizer's own: ``chatml``, ``glm`` or a Jinja file.

        Raises:
            ConfigError: the package openai is missing, no address or key is known, or the
                tokenizer or format cannot be had.
        """
        check_condense(condense, context)
        self._server = Server(
            model, base_url=base_url, api_key=api_key, timeout=timeout, retries=retries,
            prices=prices,
        )  # fmt: skip
        self.tokenizer = hub.load_tokenizer(tokenizer, chat_template)
        chosen = get_format(format)
        chat = ChatTemplate(self.tokenizer)
        self._prompting = Prompting(chat, chosen, keep_reasoning=keep_reasoning)
        self._end = self._prompting.chat.end_of_turn
        self._model, self._context, self._condense = model, context, condense
        self._limit, self._token_ids = max_new_tokens, token_ids
        ids = {"return_token_ids": True, "stop_token_ids": [self._end]} if token_ids else {}
        body: dict[str, Any] = {"top_k": top_k, **ids, **(extra or {})}
        if chosen.stop and token_ids:
            body["include_stop_str_in_output"] = True
        request: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "logprobs": 1 if logprobs else None,
            "stop": [chosen.stop] if chosen.stop else None,
        }
        self._request = {name: value for name, value in request.items() if value is not None}
        self._body = {name: value for name, value in body.items() if value is not None}
        self._agent = Agent(
            name="openai-completions",
            version=importlib.metadata.version("openai"),
            model_name=model,
            settings={
                "format": chosen.name,
                "tokenizer": hub.fingerprint(self.tokenizer),
                "max_new_tokens": max_new_tokens,
                **({"context": context} if context else {}),
                **({"condense": condense} if condense is not None else {}),
                **({} if keep_reasoning else {"keep_reasoning": False}),
                **self._request,
                **self._body,
            },
        )

    @property
    def agent(self) -> Agent:
        """Model, tokenizer and all that changes its behaviour; neither the address nor the key."""
        return self._agent

    def system_prompt(self, tools: Sequence[dict[str, Any]]) -> str:
        """The format's: the task, how to write a call, and the tools."""
        return self._prompting.format.system_prompt(tools)

    def act(self, episode: Episode) -> Action:
        """Sample the next reply and read the call in it.

        Raises:
            EpisodeOver: the context is full (``tokens``), before or within the reply, which it
                then carries.
            ModelError: the server did not answer, refused (a first prompt that is too long, too),
                or answered something else.
        """
        prompt = self._prompting.prompt_within(
            episode, context=self._context or 0, reply=self._limit, condense=self._condense
        )
        turns = len(episode.turns)
        room = self._context - len(prompt) if self._context else self._limit
        if room < 1:
            raise context_full(turns, f"{len(prompt)} tokens, a context of {self._context}")
        answer = self._server.ask(
            lambda: self._server.client.completions.create(
                model=self._model,
                prompt=prompt,
                max_tokens=min(self._limit, room),
                seed=(episode.seed + turns) % (1 << 31),
                extra_body=self._body,
                **self._request,
            ),
            turns=turns,
        )
        action = self._read(answer, prompt)
        cut = answer.choices[0].finish_reason == "length"
        if cut and room < self._limit:
            raise EpisodeOver("tokens", action)
        if cut and action["tool"] == INVALID_TOOL:
            action["arguments"] = {"reason": "The reply was cut off: write less before the call."}
        return action

    def _read(self, answer: Answer, prompt: list[int]) -> Action:
        with self._server.reading():
            completion, usage = self._completion(answer, prompt), self._server.usage(answer)
            if completion is None:
                text = self._text(answer)
            else:
                ids = completion["token_ids"]
                said = ids[:-1] if ids[-1] == self._end else ids
                text = str(self.tokenizer.decode(said, skip_special_tokens=False))
        action = parse_reply(self._prompting.format, text)
        action["message"] = text
        if completion is not None:
            action["completion"] = completion
        if usage:
            action["usage"] = usage
        return action

    def _text(self, answer: Answer) -> str:
        """The reply; the text at which it stopped is put back where the server names it."""
        choice: Any = answer.choices[0]
        stop = self._prompting.format.stop
        stopped = stop and getattr(choice, "stop_reason", None) == stop
        text = choice.text or ""
        if not isinstance(text, str):
            raise TypeError(f"{text!r} where a text belongs")
        return text + stop if stopped and not text.endswith(stop) else text

    def _completion(self, answer: Answer, prompt: list[int]) -> Completion | None:
        if not self._token_ids:
            return None
        choice: Any = answer.choices[0]
        ids = getattr(choice, "token_ids", None)
        if not ids:
            raise ModelError(
                "The server gives no token ids: start it with a version that knows "
                "return_token_ids (vLLM 0.10.2 or later), or pass token_ids=false."
            )
        taken = getattr(choice, "prompt_token_ids", None)
        if taken is not None and list(taken) != prompt:
            raise ModelError(
                f"The server sampled from another prompt ({len(taken)} tokens) than it was given "
                f"({len(prompt)}): check that it adds and cuts nothing."
            )
        found = Completion(token_ids=whole(ids), prompt_token_ids=prompt)
        said = choice.logprobs.token_logprobs if choice.logprobs else None
        if said and len(said) == len(ids):
            found["logprobs"] = finite(said)
        elif said:
            raise ModelError(
                f"The server gave {len(said)} log-probabilities for {len(ids)} tokens."
            )
        return found
