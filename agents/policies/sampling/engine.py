"""`Engine`: one thread that decodes the requests of all callers together.

Requests join and leave the running batch between decoding steps. What a request shares with
anything seen before (the episode's own history, another attempt's prompt) is not computed again.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
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
from agents.policies.sampling.fixed import FixedBatch
from agents.policies.sampling.graphs import Graphs, Plain, Runner
from agents.policies.sampling.grouped import use_grouped
from agents.policies.sampling.head import next_logits
from agents.policies.sampling.layout import (
    Layout,
    apart,
    bytes_per_token,
    check_attention_only,
    find_layout,
    steps_alike,
    together,
)
from agents.policies.sampling.prefill import Part, apart_from, groups, prefill
from agents.policies.sampling.prefixes import KeysValues, PrefixStore
from swe_env.errors import ModelError

log = logging.getLogger(__name__)

_CHUNK = 1024
"""Tokens of a prompt computed at once: bounds the memory of attention over a long prompt."""
_SHARE = 4
"""On a GPU one forward reads the prompts of a quarter as many requests as are being decoded …"""
_PATIENCE = 24
"""… or of those that wait when the first of them has waited for so many steps."""


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
    replayed: int = 0
    """Decoding steps that were replays of a CUDA graph."""


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
        ends_reply: Callable[[str], bool] | None = None,
        max_batch: int = 32,
        cache_tokens: int | None = None,
        fixed: bool | None = None,
    ) -> None:
        """Prepare; the thread starts with the first request.

        Args:
            model: A transformers causal language model, with or without a PEFT adapter.
            tokenizer: Turns the newest tokens to text, to look for `stop`.
            sampling: How tokens are drawn.
            ends: Token ids that end a reply.
            stop: A reply also ends as soon as its text holds this; empty for never.
            ends_reply: Whether a reply up to and with `stop` ends there; None for always. Asked
                in the sampling thread, when `stop` has just come.
            max_batch: Most rows decoded at once; more requests wait.
            cache_tokens: Bound of the prefix store; None for 2 GiB of keys and values.
            fixed: Decode in steps of fixed shapes, which CUDA replays as graphs; None for on
                CUDA only. Not done where the model's attention is of a kind of its own.

        Raises:
            ConfigError: the model keeps a state other than keys and values (Mamba, linear
                attention), which cannot be cut at a prefix.
        """
        check_attention_only(model)
        self.model = model
        """What is sampled from."""
        self.stats = Stats()
        self._device = torch.device(model.device)
        self._tokenizer, self._sampling = tokenizer, sampling
        self._ends, self._stop, self._ends_reply = frozenset(ends), stop, ends_reply
        self._max_batch = max_batch
        self._choose_ways(fixed)
        self._backbone = getattr(model, "get_base_model", lambda: model)().base_model
        self._decode = next_logits(model, rows=max_batch)
        itemsize = 4 if self._own_attention else model.dtype.itemsize
        default = (2 << 30) // bytes_per_token(model, itemsize)
        self._store = PrefixStore(default if cache_tokens is None else cache_tokens)
        self._batch = self._new_batch()
        self._rows: list[_Request] = []
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._held = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def _choose_ways(self, fixed: bool | None) -> None:
        """Which attention, prompts together or one by one, steps of fixed shapes or not."""
        model, cuda = self.model, self._device.type == "cuda"
        self._own_attention = not fixed and use_attend(model)
        grouped = (fixed or cuda) and use_grouped(model)
        self._layout = find_layout(model) if fixed or self._device.type != "cpu" else None
        """Of keys and values where prompts are computed together; None: one by one."""
        wanted = cuda if fixed is None else fixed
        self._fixed = bool(wanted and grouped and self._layout and steps_alike(model))
        self._runner: Runner = Graphs(self._device) if cuda else Plain()

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
        self._batch = self._new_batch()

    def _new_batch(self) -> Batch | FixedBatch:
        if not self._fixed or self._layout is None:
            return Batch(self._device)
        self._runner.clear()
        return FixedBatch(self._layout, self._max_batch, self._runner)

    def _run(self) -> None:
        reason = "The policy was closed while it sampled."
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # each thread has a current one of its own
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
        if self._layout and self._gathers():
            return not self._closed
        while len(self._rows) < self._max_batch:
            try:
                request = self._inbox.get(block=not self._rows)
            except queue.Empty:
                break
            if request is None:
                return False
            self._rows.append(request)
            if not self._layout:
                self._guarded(lambda: self._join(self._rows[-1]))
        if len(self._batch) < len(self._rows):
            self._guarded(self._join_waiting)
        return not self._closed

    def _gathers(self) -> bool:
        """Whether to decode on while requests gather: a forward costs little less for one."""
        waiting = min(self._inbox.qsize(), self._max_batch - len(self._rows))
        self._held += waiting > 0
        if waiting * _SHARE >= len(self._rows) or self._held > _PATIENCE:
            self._held = 0
            return False
        return True

    def _guarded(self, work: Any) -> None:
        """Do `work`; what it raises reaches every caller in flight, and the engine goes on."""
        try:
            work()
        except Exception as error:
            log.exception("The model failed while sampling")
            self._fail(f"The model failed while sampling: {_say(error)}.", waiting=False)
            self._batch = self._new_batch()
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

    def _join_waiting(self) -> None:
        """The same for all rows that are not in the batch yet, several in one forward."""
        layout, store, waiting = self._layout, self._store, self._rows[len(self._batch) :]
        assert layout is not None
        while waiting:
            contexts = [request.prompt[:-1] for request in waiting]
            parts = [Part(context, *store.find(context)) for context in contexts]
            now = apart_from(parts, store.capacity)
            planned = groups(parts, now)
            order = [waiting[index] for group in planned for index in group]
            waiting = [request for row, request in enumerate(waiting) if row not in set(now)]
            self._rows[len(self._batch) :] = [*order, *waiting]
            for group in planned:
                self._join_group(layout, [parts[index] for index in group])

    def _join_group(self, layout: Layout, parts: list[Part]) -> None:
        form = together if self._fixed else apart
        if parts[0].new:
            found = [form(part) for part in prefill(self._backbone, layout, parts)]
        else:
            found = [part.layers or form(layout.zeros(1, 0)[:, :, 0]) for part in parts]
        for part, layers in zip(parts, found, strict=True):
            self.stats.reused += part.known
            self.stats.prefilled += part.new
            if part.new:
                self._store.put(part.ids, layers)
            self._batch.join(layers, len(part.ids))

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
        numbers = [request.generator.random() for request in self._rows]
        # float64 as they were drawn: in float32 a number just below 1 would be 1, past every token.
        pinned = self._device.type == "cuda"
        uniforms = torch.tensor(numbers, dtype=torch.float64, pin_memory=pinned)
        uniforms = uniforms.to(self._device, non_blocking=True)
        tokens, logprobs = draw(logits, uniforms, self._sampling)
        self.stats.steps += 1
        self.stats.generated += len(self._rows)
        self.stats.replayed = self._runner.replayed
        # The one place of a step that waits for the device.
        read = torch.stack((tokens.double(), logprobs.double())).tolist()
        for request, token, logprob in zip(self._rows, *read, strict=True):
            request.token_ids.append(int(token))
            request.logprobs.append(logprob)
        for row in reversed(range(len(self._rows))):
            ended = self._ended(self._rows[row])
            if ended:
                self._leave(row, ended)

    def _ended(self, request: _Request) -> Literal["end", "stop", "length"] | None:
        if request.token_ids[-1] in self._ends:
            return "end"
        if self._stop and self._stop in self._tail(request) and self._stops(request):
            return "stop"
        return "length" if len(request.token_ids) >= request.limit else None

    def _stops(self, request: _Request) -> bool:
        if self._ends_reply is None:
            return True
        text: str = self._tokenizer.decode(request.token_ids, skip_special_tokens=False)
        before, stop, _ = text.rpartition(self._stop)
        return self._ends_reply(before + stop)

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
