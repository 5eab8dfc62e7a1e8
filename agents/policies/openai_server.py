"""An OpenAI-compatible server as the `openai` policies use it: requests, failures, tokens, cost."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from agents.policies.base import context_full
from swe_env.errors import ConfigError, ModelError
from swe_env.types import Usage

if TYPE_CHECKING:
    import openai

_FULL = (
    "context_length",  # OpenAI
    "context length",  # OpenAI, vLLM, SGLang
    "maximum context",
    "max_model_len",  # vLLM
    "maximum model length",
    "input length",  # SGLang
    "context size",  # llama.cpp
    "context window",  # llama-cpp-python, LiteLLM
    "contextwindow",
    "context limit",
    "`inputs` must have less than",  # TGI
    "`inputs` tokens + `max_new_tokens` must be",
    "prompt is too long",  # Anthropic
    "maximum number of tokens allowed",  # Gemini
    "maximum prompt length",  # xAI
    "reduce the length of the messages",  # Groq
)
"""In lower case, what servers say of a conversation that is too long."""
_REFUSED = (400, 422)
"""Statuses under which they say it."""
_TOO_LARGE = 413
_BROKEN = ("error", "abort", "network_error")
"""Reasons to finish that are the server's failure (OpenRouter's, vLLM's and SGLang's, Z.ai's)."""
_CONNECT = 10.0
"""Seconds until an address that does not answer counts as dead."""
T = TypeVar("T")


class Server:
    """A client of one server.

    Args:
        model: name of the model at the server.
        base_url: the server's address, up to ``/v1``; None for ``OPENAI_BASE_URL``.
        api_key: None for ``OPENAI_API_KEY``; servers of one's own take anything.
        timeout: seconds for one request.
        retries: how often a request is sent again after a time-out, a lost connection, a rate limit
            or a server's error: after the pause that the server asks for (``Retry-After``, up to
            two minutes), else after growing ones of up to 8 s.
        prices: dollars for a million tokens of prompt and of reply; None where nothing is paid.

    Raises:
        ConfigError: the package openai is missing, no address or key is known, or a price is below
            0.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str | None,
        timeout: float,
        retries: int,
        prices: Sequence[float] | None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                "The policy 'openai' needs the package openai: pip install 'swe-env[agents]'."
            ) from error
        own = base_url or os.environ.get("OPENAI_BASE_URL")
        key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if own else "")
        if not key:
            raise ConfigError(
                "The policy 'openai' knows no server: give base_url=http://…/v1, or set "
                "OPENAI_API_KEY."
            )
        self._prices = _checked(prices)
        self._model = model
        self.client = openai.OpenAI(
            base_url=base_url,
            api_key=key,
            timeout=openai.Timeout(timeout, connect=min(timeout, _CONNECT)),
            max_retries=retries,
        )

    def ask(self, request: Callable[[], T], *, turns: int) -> T:
        """What the server answers to a request; it holds at least one choice.

        Args:
            request: Asks the server.
            turns: Those of the episode so far. Where there is none yet, too long for the context
                means a limit that was set wrong, not an agent that filled it.

        Raises:
            EpisodeOver: the conversation is longer than the model's context (``tokens``).
            ModelError: the server did not answer, refused, or answered something else.
        """
        import openai

        where = self.client.base_url
        try:
            answer = request()
        except openai.APIStatusError as error:
            if _is_full(error):
                raise context_full(turns, _say(error)) from error
            raise ModelError(f"The server at {where} refused: {_say(error)}.") from error
        except openai.APITimeoutError as error:
            raise ModelError(
                f"The model {self._model!r} at {where} did not answer in time, asked "
                f"{self.client.max_retries + 1} times: look at the server, or raise timeout."
            ) from error
        except openai.OpenAIError as error:
            raise ModelError(
                f"The model {self._model!r} at {where} did not answer ({_say(error)}): check the "
                "address, the key and the server's log."
            ) from error
        except ValueError as error:  # of JSON that was cut off, which the SDK lets through
            raise self._unreadable(error) from error
        self._check(answer, turns)
        return answer

    def _check(self, answer: object, turns: int) -> None:
        """Raise what `ask` does for an answer that is a failure under status 200."""
        choices, said = getattr(answer, "choices", None), getattr(answer, "error", None)
        if said and any(words in str(said).lower() for words in _FULL):
            raise context_full(turns, str(said))
        if not choices:
            why = f" ({said})" if said else ""
            raise ModelError(
                f"The server at {self.client.base_url} answered without a choice{why}."
            )
        if (reason := getattr(choices[0], "finish_reason", None)) in _BROKEN:
            said = getattr(choices[0], "error", None) or said or reason
            raise ModelError(f"The server at {self.client.base_url} broke off its reply: {said}.")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While an answer is taken apart: what has another form than it should is its fault.

        Raises:
            ModelError: something in the answer is missing or of another type.
        """
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ModelError:
        return ModelError(
            f"The server at {self.client.base_url} gave an answer that cannot be read "
            f"({type(error).__name__}: {error}): look at its log, or at a proxy before it."
        )

    def usage(self, answer: Any) -> Usage | None:
        """Tokens that an answer took, as the server counts them, and what they cost."""
        said = getattr(answer, "usage", None)
        if said is None:
            return None
        found = Usage(
            prompt_tokens=int(said.prompt_tokens or 0),
            completion_tokens=int(said.completion_tokens or 0),
        )
        if self._prices is not None:
            paid = zip(
                self._prices, (found["prompt_tokens"], found["completion_tokens"]), strict=True
            )
            found["cost"] = sum(price * tokens for price, tokens in paid) / 1e6
        return found


def whole(ids: Sequence[Any]) -> list[int]:
    """An answer's token ids; raises within `Server.reading` what is none."""
    if wrong := [value for value in ids if type(value) is not int]:
        raise TypeError(f"{wrong[0]!r} for a token id")
    return list(ids)


def finite(logprobs: Sequence[Any]) -> list[float]:
    """An answer's log-probabilities; raises within `Server.reading` what is none."""
    found = [float(value) for value in logprobs]
    if wrong := [value for value in found if not math.isfinite(value)]:
        raise ValueError(f"{wrong[0]} for a log-probability")
    return found


def _is_full(error: openai.APIStatusError) -> bool:
    """Whether the server refuses a conversation for its length."""
    said = f"{error} {error.response.text}".lower()
    known = error.status_code in _REFUSED and any(words in said for words in _FULL)
    return known or error.status_code == _TOO_LARGE


def _checked(prices: Sequence[float] | None) -> tuple[float, float] | None:
    if prices is None:
        return None
    if len(prices) != 2 or any(not price >= 0 for price in prices):
        raise ConfigError(
            f"prices are two numbers, dollars for a million tokens of prompt and of reply, not "
            f"{prices}."
        )
    return float(prices[0]), float(prices[1])


def _say(error: Exception) -> str:
    """The failure in a line, with what the server wrote, which the SDK may leave out."""
    said = " ".join(str(error).split())
    written = " ".join(getattr(getattr(error, "response", None), "text", "").split())
    if written and written not in said and "{" not in said:
        said = f"{said.rstrip('.')}: {written}"
    return f"{type(error).__name__}: {said[:300].rstrip('.')}" if said else type(error).__name__
