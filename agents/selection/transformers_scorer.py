"""A verifier on this machine: log-probabilities of YES and NO from a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents.selection.verifier import ANSWERS, Message
from swe_env.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch


class TransformersScorer:
    """Scores prompts with a causal language model and its chat template."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """`model` and `tokenizer` as transformers loads them; the model stays where it is."""
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError("The verifier's tokenizer has no chat template: set one.")
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: str, *, device: str = "cpu", dtype: str = "auto") -> TransformersScorer:
        """From a folder (or hub name) in transformers' format.

        Raises:
            ModelError: transformers is missing or cannot load it.
        """
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (ImportError, OSError, ValueError) as error:
            raise ModelError(f"The verifier {path!r} could not be loaded: {error}") from error
        return cls(model.to(device), tokenizer)

    def __call__(self, prompts: Sequence[Sequence[Message]]) -> list[tuple[float, float]]:
        """(log P(YES), log P(NO)) of each prompt; one forward pass where both are one token."""
        return [self._score(prompt) for prompt in prompts]

    def _score(self, prompt: Sequence[Message]) -> tuple[float, float]:
        import torch

        text = self.tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=False
        )
        # A tokenizer may merge the prompt's last characters with the answer, so the place where
        # the answer starts is where the two encodings first differ.
        encoded = [
            self.tokenizer(text + answer, add_special_tokens=False)["input_ids"]
            for answer in ANSWERS
        ]
        start = _common_prefix(*encoded)
        if start == 0 or any(len(ids) == start for ids in encoded):
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


def _common_prefix(left: list[int], right: list[int]) -> int:
    """How many ids the two start with in common."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
