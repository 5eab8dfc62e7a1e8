"""`ChatTemplate`: the only place where messages become tokens.

The sampler and the learner's encoder both use it, so what was sampled and what is learned from
are the same ids. A conversation is the ids of its first prompt, then by turns what the policy
sampled and what the template puts between a reply and the next one; nothing is tokenised twice.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""An append-only template for models that speak ChatML but whose own template rewrites earlier
turns (Qwen3's hybrid models)."""

GLM = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""The same for GLM-4.5, whose own template drops the reasoning of earlier turns."""

TEMPLATES = {"chatml": CHATML, "glm": GLM}
"""By name, for the setting ``chat_template`` of policies and of training."""


def read_template(name: str | Path) -> str:
    """A template of ours by name, or the Jinja text in a file.

    Raises:
        ConfigError: there is neither.
    """
    if str(name) in TEMPLATES:
        return TEMPLATES[str(name)]
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"There is no chat template {str(name)!r} ({reason}): give "
            f"{', '.join(TEMPLATES)} or a Jinja file."
        ) from error


_DATE = {
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%B": "July",
    "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday", "%j": "208", "%F": "2024-07-26",
    "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%D": "07/26/24", "%T": "00:00:00",
    "%x": "07/26/24", "%X": "00:00:00", "%c": "Fri Jul 26 00:00:00 2024",
}  # fmt: skip
_TODAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{said}')" for code, said in _DATE.items())
    + " }}{% endmacro %}{{ '' }}"
)
"""In front of templates that tell the date, for which it is the same always: an episode of tomorrow
begins as today's do, and one record gives one row of tokens. The day is that which Llama 3.1's
template says where it is told none. A macro, because transformers hands on no functions."""


class Message(TypedDict):
    """One message of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


def episode_messages(system_prompt: str, first_text: str) -> list[Message]:
    """The messages an episode starts with: the scaffold's system prompt and the issue."""
    return [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": first_text},
    ]


class ChatTemplate:
    """Token ids of prompts, replies and observations under a tokenizer's chat template.

    ``prompt(first) + completion(a1) + observation(o1) + completion(a2) + …`` equals the
    template's own rendering of the whole conversation, token for token, as long as a reply does
    not merge with the generation prompt before it (a reply that starts with a line break does
    under ChatML; its ids are then the ones a policy can sample, not those of the rendering).

    Special tokens written out in a message (a repository may hold ``<|im_end|>`` in a test) are
    encoded as ordinary text: no observation can end a turn. Calls are safe from several threads.
    """

    end_of_turn: int
    """Id of the token with which a reply ends; where the template puts none behind a reply, that is
    the one which opens the next message (GLM's ``<|user|>``), as the model samples it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Learn the template's frame by rendering short conversations.

        Raises:
            ConfigError: the tokenizer has no chat template, or the template is not append-only
                or closes a reply without a special token; says which.
        """
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        own = getattr(tokenizer, "chat_template", None) and tokenizer.get_chat_template()
        self._template = f"{_TODAY}{own}" if own and "strftime_now" in own else None
        if not own:
            raise ConfigError(
                "The tokenizer has no chat template: take an instruction-tuned model, or set "
                "chat_template (chatml is one)."
            )
        added = tokenizer.added_tokens_decoder.items()
        self._specials = {token.content: index for index, token in added if token.special}
        longest_first = sorted(self._specials, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._special = re.compile(f"({names})")
        self._hide = re.compile(f"{names}|{_MARK.pattern}")
        self._folds_system = not self._accepts_system()
        self._base: list[Message] = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": "<think>why</think>reply"},
        ]
        self._after: list[Message] = []
        self.end_of_turn = self._find_end_of_turn()
        self._end = next(k for k, v in self._specials.items() if v == self.end_of_turn)
        self._closed = self._close(self._render([*self._base, *self._after], False))
        self.observation("probe")

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of `messages` up to the point where a reply is sampled.

        A template that knows no system role gets the system message at the head of the first
        user message. Give a system message of your own: some templates add a default one where
        there is none.
        """
        return self._encode(list(messages), "", generation=True)

    def completion(self, text: str) -> list[int]:
        """Ids a policy would have sampled to say `text`, the end-of-turn token included."""
        question = self._base[:1]
        before = self._render(question, True)
        reply: Message = {"role": "assistant", "content": text}
        ids = self._encode([*question, reply, *self._after], before)
        if self.end_of_turn not in ids:
            raise ConfigError(f"The chat template does not close the reply {text[:60]!r}.")
        end = len(ids) - 1 - ids[::-1].index(self.end_of_turn)
        return ids[: end + 1]

    def observation(self, *texts: str) -> list[int]:
        """What the template puts between a sampled end-of-turn token and the next reply.

        That is the rest of the reply's frame, a user message of each of `texts`, and the generation
        prompt.
        """
        said: list[Message] = [{"role": "user", "content": text} for text in texts]
        messages = [*self._base, *said]
        before = self._closed.removesuffix(self._end)
        ids = self._encode(messages, before, generation=True)
        return ids[1:]

    def _accepts_system(self) -> bool:
        messages = episode_messages("probe-system", "probe-user")
        try:
            return "probe-system" in self._render_raw(messages, True)
        except Exception:
            return False

    def _find_end_of_turn(self) -> int:
        """The special token right after a reply's content, and a check of what comes before."""
        before = self._render(self._base[:1], True)
        whole = self._render(self._base, False)
        content = self._base[1]["content"]
        head, found, tail = whole.removeprefix(before).rpartition(content)
        if not whole.startswith(before) or not found or head.strip():
            raise _not_append_only("a reply is not rendered as it was sampled")
        match = self._special.match(tail.lstrip())
        if match is None and not tail.strip():
            self._after = [{"role": "user", "content": "next"}]
            followed = self._render([*self._base, *self._after], False)
            match = self._special.match(followed.rpartition(content)[2].lstrip())
        if match is None:
            raise ConfigError(
                "The chat template closes a reply without a special token, so a policy could not "
                "end its turn: set chat_template (chatml, a file) to one that does."
            )
        return self._specials[match.group()]

    def _close(self, rendered: str) -> str:
        """`rendered` up to and with the end-of-turn token of its last reply."""
        return rendered[: rendered.rindex(self._end) + len(self._end)]

    def _render(self, messages: list[Message], generation: bool) -> str:
        if self._folds_system and messages and messages[0]["role"] == "system":
            first = "\n\n".join(message["content"] for message in messages[:2])
            messages = [{"role": "user", "content": first}, *messages[2:]]
        try:
            return self._render_raw(messages, generation)
        except Exception as error:  # jinja2 raises whatever the template's own code does
            roles = ", ".join(message["role"] for message in messages)
            raise ConfigError(
                f"The chat template refuses a conversation of {roles}: {error}."
            ) from error

    def _render_raw(self, messages: list[Message], generation: bool) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": m["role"], "content": m["content"]} for m in messages],
            add_generation_prompt=generation,
            tokenize=False,
            chat_template=self._template,
        )
        assert isinstance(rendered, str)
        return rendered

    def _encode(self, messages: list[Message], before: str, generation: bool = False) -> list[int]:
        """Ids of the rendering after `before`, special tokens inside messages as plain text."""
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match.group())
            return f"\ue000{len(hidden) - 1}\ue001"

        masked: list[Message] = [
            {"role": message["role"], "content": self._hide.sub(hide, message["content"])}
            for message in messages
        ]
        rendered = self._render(masked, generation)
        if not rendered.startswith(before):
            raise _not_append_only("an earlier reply changes when a message follows")
        text = rendered[len(before) :]
        with self._lock:
            if not hidden:
                return self._ids(text)
            ids: list[int] = []
            for part in self._special.split(text):
                shown = _MARK.sub(lambda match: hidden[int(match.group(1))], part)
                ids += [self._specials[part]] if part in self._specials else self._ids(shown, True)
            return ids

    def _ids(self, text: str, plain: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=plain
        )
        return ids


_MARK = re.compile("\ue000(\\d+)\ue001")


def _not_append_only(why: str) -> ConfigError:
    return ConfigError(
        f"The chat template is not append-only ({why}), so a conversation's ids would drift "
        "between sampling and learning: set chat_template to one that keeps every turn as it was "
        "(chatml for ChatML models, glm for GLM-4.5, or a Jinja file)."
    )
