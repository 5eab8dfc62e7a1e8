"""A verifier on this machine: log-probabilities of YES and NO from a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import ChatTemplate, Message
from agents.selection.verifier import ANSWERS
from swe_env.errors import ModelError
from swe_env.prefix import common_prefix

if TYPE_CHECKING:
    import torch


class TransformersScorer:
    """Scores prompts with a causal language model and its chat template.

    What an attempt wrote is text to it: a special token in a patch ends no turn (`ChatTemplate`).
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """`model` and `tokenizer` as transformers loads them; the model stays where it is.

        Raises:
            ConfigError: the tokenizer has no chat template, or one that `ChatTemplate` refuses.
        """
        self.model = model.eval()
        self._chat = ChatTemplate(tokenizer)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        chat_template: str | Path | None = None,
    ) -> TransformersScorer:
        """From a folder, a hub id or ``smollm2``; options as `agents.policies.hub.load` has them.

        Raises:
            ConfigError: it cannot be had, or its chat template cannot be used.
        """
        from agents.policies import hub

        return cls(*hub.load(path, device=device, dtype=dtype, chat_template=chat_template))

    def __call__(self, prompts: Sequence[Sequence[Message]]) -> list[tuple[float, float]]:
        """(log P(YES), log P(NO)) of each prompt; one forward pass where both are one token."""
        return [self._score(prompt) for prompt in prompts]

    def _score(self, prompt: Sequence[Message]) -> tuple[float, float]:
        import torch

        before = self._chat.prompt(prompt)
        encoded = [before + self._chat.completion(answer)[:-1] for answer in ANSWERS]
        start = common_prefix(*encoded)  # the answers may begin with a token in common
        if any(len(ids) == start for ids in encoded):
            raise ModelError("The verifier's tokenizer does not tell YES from NO.")
        answers = [ids[start:] for ids in encoded]
        with torch.inference_mode():
            if all(len(answer) == 1 for answer in answers):
                last = self._logps(encoded[0][:start], keep=1)[0]
                return float(last[answers[0][0]]), float(last[answers[1][0]])
            yes, no = (self._answer(encoded[0][:start], answer) for answer in answers)
        return yes, no

    def _answer(self, prefix: list[int], answer: list[int]) -> float:
        rows = self._logps(prefix + answer[:-1], keep=len(answer))
        return sum(float(row[token]) for row, token in zip(rows, answer, strict=True))

    def _logps(self, ids: list[int], *, keep: int) -> torch.Tensor:
        """float32 log-probabilities, shape (keep, vocab), after each of the last `keep` tokens."""
        import torch

        inputs = torch.tensor([ids], device=self.model.device)
        logits = self.model(input_ids=inputs, logits_to_keep=keep, use_cache=False).logits
        return torch.log_softmax(logits[0, -keep:].float(), dim=-1)
