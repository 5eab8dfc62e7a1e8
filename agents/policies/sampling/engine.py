"""`Engine`: one thread that decodes the requests of all callers together.

Requests join and leave the running batch between decoding steps. What a request shares with
anything seen before (the episode's own history, another attempt's prompt) is not computed again.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from agents.policies.sampling.attention import Float32Layer, use_attend
from agents.policies.sampling.batch import Batch
from agents.policies.sampling.draw import Sampling, draw
from agents.policies.sampling.head import next_logits
from agents.policies.sampling.prefixes import KeysValues, PrefixStore
from swe_env.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

_CHUNK = 1024
"""Tokens of a prompt computed at once: bounds the memory of attention over a long prompt."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One reply."""

    token_ids: list[int]
    """The end token included when it was sampled."""
    logprobs: list[float]
    """Natural-log probability of each id at temperature 1, nothing cut off."""
    ended: Literal["end", "stop", "length"]
    """By an end token, by the stop string, or by the limit on new tokens."""


@dataclass(slots=True)
class Stats:
    """What the engine did so far."""

    prefilled: int = 0
    """Prompt tokens computed."""
    reused: int = 0
    """Prompt tokens taken from what was computed before."""
    generated: int = 0
    steps: int = 0
    """Decoding steps; ``generated / steps`` is the mean size of the batch."""


@dataclass(slots=True)
class _Request:
    prompt: list[int]
    limit: int
    generator: np.random.Generator
    reply: Future[Sampled] = field(default_factory=Future)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def newest(self) -> int:
        """The token whose successor is sampled next."""
        return self.token_ids[-1] if self.token_ids else self.prompt[-1]


class Engine:
    """Continuous batching for a causal language model with key/value caches.

    A row's draws come from its own seed and its own logits, so its tokens do not depend on which
    rows share the batch, up to floating point: in float32 that is invisible in practice, in
    bfloat16 another batch shape can round near-ties the other way.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        sampling: Sampling,
        ends: Sequence[int],
        stop: str = "",
        max_batch: int = 32,
        cache_tokens: int | None = None,
    ) -> None:
        """Prepare; the thread starts with the first request.

        Args:
            model: A transformers causal language model, with or without a PEFT adapter.
            tokenizer: Turns the newest tokens to text, to look for `stop`.
            sampling: How tokens are drawn.
            ends: Token ids that end a reply.
            stop: A reply also ends as soon as its text holds this; empty for never.
            max_batch: Most rows decoded at once; more requests wait.
            cache_tokens: Bound of the prefix store; None for 2 GiB of keys and values.

        Raises:
            ConfigError: the model keeps a state other than keys and values (Mamba, linear
                attention), which cannot be cut at a prefix.
        """
        _check_attention_only(model)
        self.model = model
        """What is sampled from."""
        self.stats = Stats()
        self._own_attention = use_attend(model)
        self._backbone = getattr(model, "get_base_model", lambda: model)().base_model
        self._decode = next_logits(model, rows=max_batch)
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._ends = frozenset(ends)
        self._stop = stop
        self._max_batch = max_batch
        self._device = torch.device(model.device)
        if cache_tokens is None:
            width = 4 if self._own_attention else model.dtype.itemsize
            cache_tokens = (2 << 30) // _bytes_per_token(model, width)
        self._store = PrefixStore(cache_tokens)
        self._batch = Batch(self._device)
        self._rows: list[_Request] = []
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def generate(self, prompt: Sequence[int], *, limit: int, seed: Sequence[int]) -> Sampled:
        """Sample a reply to `prompt`; blocks, call it from as many threads as there are episodes.

        Args:
            prompt: Token ids, at least one.
            limit: Most new tokens.
            seed: Numbers that every draw of this reply derives from.

        Raises:
            ModelError: the model failed (out of memory …) or the engine is closed.
        """
        seeds = [number % (1 << 64) for number in seed]
        request = _Request(list(prompt), limit, np.random.default_rng(seeds))
        with self._lock:
            if self._closed:
                raise ModelError("The policy was closed: make a new one to sample from it.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)
                self._thread.start()
            self._inbox.put(request)
        return request.reply.result()

    def close(self) -> None:
        """Stop the thread and free the caches; who still waits gets a `ModelError`."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._inbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._store.clear()
        self._batch = Batch(self._device)

    def _run(self) -> None:
        reason = "The policy was closed while it sampled."
        try:
            with torch.inference_mode():
                while self._admit():
                    self._guarded(self._step)
        except BaseException as error:
            reason = f"The sampling thread died: {_say(error)}."
            raise
        finally:
            with self._lock:
                self._closed = True
            self._fail(reason)

    def _admit(self) -> bool:
        """Take waiting requests into the batch; blocks while it is empty. False to stop."""
        while len(self._rows) < self._max_batch:
            try:
                request = self._inbox.get(block=not self._rows)
            except queue.Empty:
                break
            if request is None:
                return False
            self._rows.append(request)
            self._guarded(lambda: self._join(self._rows[-1]))
        return not self._closed

    def _guarded(self, work: Any) -> None:
        """Do `work`; what it raises reaches every caller in flight, and the engine goes on."""
        try:
            work()
        except Exception as error:
            log.exception("The model failed while sampling")
            self._fail(f"The model failed while sampling: {_say(error)}.", waiting=False)
            self._batch = Batch(self._device)
            self._store.clear()

    def _fail(self, reason: str, waiting: bool = True) -> None:
        lost, self._rows = self._rows, []
        while waiting and not self._inbox.empty():
            request = self._inbox.get()
            lost += [request] if request is not None else []
        for request in lost:
            request.reply.set_exception(ModelError(reason))

    def _join(self, request: _Request) -> None:
        """Compute what is new of the prompt but its last token, which the next step takes."""
        context = request.prompt[:-1]
        known, layers = self._store.find(context)
        self.stats.reused += known
        self.stats.prefilled += len(context) - known
        if known < len(context):
            layers = self._prefill(layers, context, known)
            self._store.put(context, layers)
        if not context:  # only the shapes are wanted
            computed = self._prefill([], request.prompt, 0)
            layers = [(keys[:, :0], values[:, :0]) for keys, values in computed]
        self._batch.join(layers, len(context))

    def _prefill(self, layers: KeysValues, ids: list[int], known: int) -> KeysValues:
        """Keys and values of `ids`, those of the first `known` given."""
        cache = self._cache([(keys[None], values[None]) for keys, values in layers])
        for first in range(known, len(ids), _CHUNK):
            chunk = ids[first : first + _CHUNK]
            self._backbone(
                input_ids=torch.tensor([chunk], device=self._device),
                position_ids=torch.arange(first, first + len(chunk), device=self._device)[None],
                past_key_values=cache,
                use_cache=True,
            )
        computed: list[Any] = cache.layers
        return [(layer.keys[0], layer.values[0]) for layer in computed]

    def _cache(self, layers: KeysValues) -> Cache:
        """A cache that holds `layers`, each (1, heads, tokens, head_dim), and takes more."""
        if not self._own_attention:
            return DynamicCache(layers or None)
        if layers:
            return Cache(layers=[Float32Layer(keys, values) for keys, values in layers])
        return Cache(layer_class_to_replicate=Float32Layer)

    def _step(self) -> None:
        """Sample one token for every row; finished rows leave."""
        if not self._rows:
            return
        logits = self._batch.step(self._decode, [request.newest for request in self._rows])
        uniforms = torch.tensor([request.generator.random() for request in self._rows])
        tokens, logprobs = draw(logits, uniforms, self._sampling)
        self.stats.steps += 1
        self.stats.generated += len(self._rows)
        for request, token, logprob in zip(
            self._rows, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            request.token_ids.append(token)
            request.logprobs.append(logprob)
        for row in reversed(range(len(self._rows))):
            ended = self._ended(self._rows[row])
            if ended:
                self._leave(row, ended)

    def _ended(self, request: _Request) -> Literal["end", "stop", "length"] | None:
        if request.token_ids[-1] in self._ends:
            return "end"
        if self._stop and self._stop in self._tail(request):
            return "stop"
        return "length" if len(request.token_ids) >= request.limit else None

    def _tail(self, request: _Request) -> str:
        """Text of the newest tokens, enough of them to hold the stop string: one a byte."""
        newest = request.token_ids[-len(self._stop.encode()) - 1 :]
        text: str = self._tokenizer.decode(newest, skip_special_tokens=False)
        return text

    def _leave(self, row: int, ended: Literal["end", "stop", "length"]) -> None:
        request = self._rows[row]
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        layers = self._batch.leave(row, keep=self._store.capacity > 0)
        # The newest token was sampled but not read yet: no keys and values of it.
        self._store.put(request.prompt + request.token_ids[:-1], layers)
        request.reply.set_result(Sampled(request.token_ids, request.logprobs, ended))


def _say(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _check_attention_only(model: Any) -> None:
    config = _text_config(model)
    kinds = set(getattr(config, "layer_types", None) or [])
    odd = sorted(kind for kind in kinds if "attention" not in kind or kind == "linear_attention")
    if odd or not getattr(config, "num_attention_heads", 0):
        raise ConfigError(
            f"The model {config.model_type!r} keeps a state that is not keys and values "
            f"({', '.join(odd) or 'no attention'}): serve it, and use the 'openai' policy."
        )


def _bytes_per_token(model: Any, itemsize: int) -> int:
    """Bytes of one token's keys and values over all layers, `itemsize` bytes a number."""
    config = _text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * itemsize)
