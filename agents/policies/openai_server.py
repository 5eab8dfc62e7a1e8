"""An OpenAI-compatible server as the `openai` policies use it: requests, failures, tokens, cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from agents.policies.base import EpisodeOver
from swe_env.errors import ConfigError, ModelError
from swe_env.types import Usage

_CONTEXT = (
    "context_length",
    "context length",
    "maximum context",
    "context window",
    "max_model_len",
)
T = TypeVar("T")


class Server:
    """A client of one server.

    Args:
        model: name of the model at the server.
        base_url: the server's address, up to ``/v1``; None for ``OPENAI_BASE_URL``.
        api_key: None for ``OPENAI_API_KEY``; servers of one's own take anything.
        timeout: seconds for one request.
        retries: how often a request is sent again, with growing pauses, after a time-out, a lost
            connection, a rate limit or a server's error.
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
            base_url=base_url, api_key=key, timeout=timeout, max_retries=retries
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
        except openai.BadRequestError as error:
            if any(words in str(error).lower() for words in _CONTEXT):
                if turns:
                    raise EpisodeOver("tokens") from error
                raise ModelError(
                    f"The server refuses the first prompt already ({_say(error)}): lower "
                    "max_new_tokens, or serve the model with a longer context."
                ) from error
            raise ModelError(f"The server refused the request: {_say(error)}.") from error
        except openai.OpenAIError as error:
            raise ModelError(
                f"The model {self._model!r} at {where} did not answer ({_say(error)}): check the "
                "address, the key and the server's log."
            ) from error
        if not getattr(answer, "choices", None):
            raise ModelError(f"The server at {where} answered without a choice.")
        return answer

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
