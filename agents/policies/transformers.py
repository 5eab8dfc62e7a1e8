"""The `transformers` policy: a local model, optionally with an adapter, that says what it sampled.

Prompts are made by `agents.policies.prompting`. A reply ends with the end-of-turn token or as soon
as it holds a complete call.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import ChatTemplate
from agents.parsing import TextFormat, get_format, parse_reply
from agents.parsing.base import call_ends
from agents.policies import hub
from agents.policies.base import BasePolicy, Episode, EpisodeOver, context_full
from agents.policies.prompting import Prompting, check_condense
from agents.policies.sampling import Engine, Sampled, Sampling, Stats, can_pack, pack_linear
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Agent
from swe_env.types import Action

if TYPE_CHECKING:
    import torch


class TransformersPolicy(BasePolicy):
    """Samples actions from a local causal language model; call `act` from many threads.

    All episodes in flight are decoded together, and each turn computes only the tokens that are
    new (see `agents.policies.sampling.Engine`). Every draw derives from the episode's seed and
    turn. Recorded log-probabilities are those of the unmodified distribution (temperature 1, no
    truncation), as the learner computes them: to 1e-3 in float32. In bfloat16 hidden states of
    different batch shapes round differently, so a token's two figures differ: for SmolLM2 on a CPU
    by 0.02 nat in the mean of their absolute values and 0.2 at most (288 tokens, 6 rows), with a
    mean of 0.002.
    """

    def __init__(
        self,
        model: str | Path = hub.SMOLLM2,
        adapter: str | Path | None = None,
        *,
        format: str | TextFormat = "r2e",
        temperature: float = 0.7,
        top_k: int = 20,
        top_p: float = 0.8,
        max_new_tokens: int = 1024,
        context: int | None = None,
        condense: float | None = None,
        keep_reasoning: bool = True,
        max_batch: int = 32,
        cache_tokens: int | None = None,
        dtype: torch.dtype | str | None = None,
        device: str = "auto",
        merge: bool | None = None,
        chat_template: str | Path | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: A folder, a hub id, or ``smollm2``; see `hub.load`.
            adapter: Folder of a PEFT adapter put on top.
            format: How calls are written: a name of `agents.parsing.formats`, or a format.
            temperature: 0 for greedy.
            top_k: Draw among this many tokens; 0 for all.
            top_p: Draw among the fewest tokens that hold this probability; 0 or 1 for all.
            max_new_tokens: Most tokens of one reply.
            context: Most tokens of a prompt and its reply; None for what the model was made for.
            condense: Where a prompt leaves no room for a reply of `max_new_tokens`, replace old
                observations by a line each until this share of the context is used; None lets the
                episode end.
            keep_reasoning: False leaves what earlier replies thought, up to ``</think>``, out of
                prompts, as the templates of Qwen3 and GLM-4.5 do.
            max_batch: Most episodes decoded at once; more wait.
            cache_tokens: Most tokens whose keys and values are kept between turns; None for 2 GiB.
            dtype: Of the weights; None for bfloat16 where it is native, else float32.
            device: ``auto``, ``cpu``, ``cuda:0`` …
            merge: Add a LoRA adapter into the weights: fewer operations a token. None does so in
                float32 only: in bfloat16 the sum is rounded, so log-probabilities are no longer
                those of the adapter beside the model, which the learner computes with.
            chat_template: In place of the tokenizer's own: ``chatml``, ``glm`` or a Jinja file.

        Raises:
            ConfigError: model, adapter or format cannot be had, or a setting makes no sense.
        """
        if max_new_tokens < 1 or max_batch < 1:
            raise ConfigError("max_new_tokens and max_batch must be at least 1.")
        check_condense(condense, context or 1)
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p or 1.0)
        self.format = get_format(format)
        loaded: Any
        loaded, tokenizer = hub.load(model, dtype=dtype, device=device, chat_template=chat_template)
        weights = ""
        if adapter is not None:
            weights = f"{adapter}@sha256:{hub.adapter_hash(adapter)}"
            merge = str(loaded.dtype) == "torch.float32" if merge is None else merge
            loaded = hub.with_adapter(loaded, adapter, merge=merge)
        if can_pack(loaded):
            pack_linear(loaded, max_batch, keep=loaded.get_output_embeddings())
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer)
        self._prompting = Prompting(self.chat, self.format, keep_reasoning=keep_reasoning)
        self.max_new_tokens = max_new_tokens
        self.context = context or int(loaded.config.get_text_config().max_position_embeddings)
        self.condense = condense
        self._ends = {self.chat.end_of_turn, *_end_tokens(loaded)}
        self._engine = Engine(
            loaded,
            tokenizer,
            sampling=sampling,
            ends=sorted(self._ends),
            stop=self.format.stop,
            ends_reply=partial(call_ends, self.format),
            max_batch=max_batch,
            cache_tokens=cache_tokens,
        )
        self._agent = Agent(
            name="transformers",
            version=importlib.metadata.version("transformers"),
            model_name=str(model),
            adapter=weights,
            settings={
                "format": self.format.name,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
                "context": self.context,
                **({"condense": condense} if condense is not None else {}),
                **({} if keep_reasoning else {"keep_reasoning": False}),
                "dtype": str(loaded.dtype).removeprefix("torch."),
                "merged": bool(adapter and merge),
                "tokenizer": hub.fingerprint(tokenizer),
            },
        )

    @property
    def agent(self) -> Agent:
        """Model, adapter with the hash of its weights, sampling settings, tokenizer, format."""
        return self._agent

    def system_prompt(self, tools: Sequence[dict[str, Any]]) -> str:
        """The format's: the task, how to write a call, and the tools."""
        return self.format.system_prompt(tools)

    @property
    def stats(self) -> Stats:
        """Tokens prefilled, reused and generated so far."""
        return self._engine.stats

    def act(self, episode: Episode) -> Action:
        """Sample the next reply and read the call in it.

        A reply that holds no call, or a malformed one, becomes a call of the tool ``invalid``
        whose ``reason`` says how to do it right.

        Raises:
            EpisodeOver: the context is full (``tokens``), before or within the reply, which it
                then carries.
            ModelError: the model failed, the policy is closed, or the first prompt is too long.
        """
        prompt = self.prompt(episode)
        room = self.context - len(prompt)
        if room < 1:
            said = f"{len(prompt)} tokens, a context of {self.context}"
            raise context_full(len(episode.turns), said)
        sampled = self._engine.generate(
            prompt,
            limit=min(self.max_new_tokens, room),
            seed=(episode.seed, len(episode.turns)),
        )
        if sampled.ended == "length" and room < self.max_new_tokens:
            raise EpisodeOver("tokens", self._action(prompt, sampled))
        return self._action(prompt, sampled)

    def prompt(self, episode: Episode) -> list[int]:
        """Token ids the next reply is sampled from (`Prompting.prompt_within`)."""
        return self._prompting.prompt_within(
            episode, context=self.context, reply=self.max_new_tokens, condense=self.condense
        )

    def close(self) -> None:
        """Stop sampling; who still waits for a reply gets a `ModelError`."""
        self._engine.close()

    def __enter__(self) -> TransformersPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _action(self, prompt: list[int], sampled: Sampled) -> Action:
        ids = sampled.token_ids
        said = ids[:-1] if ids[-1] in self._ends else ids
        text = str(self.tokenizer.decode(said, skip_special_tokens=False))
        action = parse_reply(self.format, text)
        action["message"] = text
        action["completion"] = {
            "token_ids": ids,
            "logprobs": sampled.logprobs,
            "prompt_token_ids": prompt,
        }
        return action


def _end_tokens(model: Any) -> list[int]:
    """Ids that the model's makers say end a text; some families have several."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return ends if isinstance(ends, list) else [ends] if ends is not None else []
