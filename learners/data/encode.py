"""`encode`: a trajectory as token ids, with a mask of exactly those the policy sampled.

Everything else (prompt, role headers, observations, what the template inserts) has a probability
that does not depend on the policy, so leaving it out is exact, not a heuristic (arXiv 2509.12434,
section 3). The same holds where a prompt rewrites what came before (old observations condensed,
earlier reasoning left out): each turn's tokens are taken in the context they were sampled in, and
the trajectory's log-probability is the sum over its contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from learners.data.report import Unusable
from swe_env.errors import ConfigError, ToolError
from swe_env.replay.trajectory import Step, Trajectory
from swe_env.types import Action

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from agents.chat import Message


@dataclass(frozen=True, slots=True)
class LaterContext:
    """A context that is not the one before it and something more.

    Kept as what is new, or a hundred contexts of one trajectory would be held a hundred times.
    """

    kept: int
    """Tokens of the context before it with which it begins; none of them is learned here."""
    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    turn_ids: tuple[int, ...]
    """Of what stands behind those; as in `Encoded`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One trajectory as tokens: its first context, and where prompts are rewritten, later ones.

    The three tuples have the same length, and are all of it as long as `later` is empty.
    """

    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """True at the tokens the policy sampled, the end of each turn included."""
    turn_ids: tuple[int, ...]
    """The agent turn (from 0) that sampled the token, or -1."""
    cut_tokens: int = 0
    """Tokens of observations that were left out to keep within a limit (`learners.data.cut`)."""
    later: tuple[LaterContext, ...] = ()
    """Contexts of later turns, in order, where a prompt rewrites what came before."""
    templated: bool = False
    """Whether a chat template wrote the tokens, as some turn's were not recorded."""
    unused_ids: bool = False
    """Whether other turns' were, and are not used."""

    def __len__(self) -> int:
        """Tokens of all its contexts, those that one has from the one before it not again."""
        return len(self.input_ids) + sum(len(one.input_ids) for one in self.later)

    @property
    def num_loss_tokens(self) -> int:
        """How many tokens the policy sampled."""
        return sum(self.loss_mask) + sum(sum(one.loss_mask) for one in self.later)

    @property
    def longest(self) -> int:
        """Tokens of its longest context, which the model sees at once."""
        return max([len(self.input_ids), *(len(one.input_ids) + one.kept for one in self.later)])

    @property
    def contexts(self) -> list[Encoded]:
        """Each context that something is learned in, as a sequence of its own.

        Sums over the trajectory are sums over these. Made anew each time, and not to be kept.
        """
        return list(self._contexts())

    def from_turn(self, turn: int) -> Encoded:
        """The same tokens, of which those sampled before agent turn `turn` are not learned."""

        def learned(ids: tuple[int, ...]) -> dict[str, Any]:
            turns = tuple(at if at >= turn else -1 for at in ids)
            return {"loss_mask": tuple(at >= 0 for at in turns), "turn_ids": turns}

        later = tuple(replace(one, **learned(one.turn_ids)) for one in self.later)
        return replace(self, **learned(self.turn_ids), later=later)

    @property
    def first_state(self) -> tuple[int, ...]:
        """The tokens before the first learned one, in the context it was sampled in."""
        first = next(self._contexts(), self)
        mask = first.loss_mask
        return first.input_ids[: mask.index(True) if True in mask else None]

    @property
    def prompt_length(self) -> int:
        """How many those are."""
        return len(self.first_state)

    def _contexts(self) -> Iterator[Encoded]:
        if not self.later:
            yield self
            return
        ids = self.input_ids
        if True in self.loss_mask:
            yield replace(self, later=())
        for one in self.later:
            ids = ids[: one.kept] + one.input_ids
            if True in one.loss_mask:
                before = (False,) * one.kept, (-1,) * one.kept
                yield Encoded(ids, before[0] + one.loss_mask, before[1] + one.turn_ids)


DEFAULT_FORMAT = "r2e"
"""How tool calls are written where neither the record nor the caller says."""


class Chat(Protocol):
    """What `encode` asks of a chat template; `agents.chat.ChatTemplate` is one."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages up to the point where a reply is sampled."""
        ...

    def completion(self, text: str) -> list[int]:
        """Ids sampled to say `text`, the end of the turn included."""
        ...

    def observation(self, *texts: str) -> list[int]:
        """Ids between a sampled end of turn and the next reply: these user messages."""
        ...


class Format(Protocol):
    """What `encode` asks of a text format; those of `agents.parsing` are."""

    name: str
    """As a policy's settings name it."""

    def system_prompt(self, tools: Any) -> str:
        """The system message that explains the tools."""
        ...

    def render(self, action: Action) -> str:
        """The reply a model would write for this action."""
        ...


def encode(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: Chat | None = None,
    text_format: Format | None = None,
    max_tokens: int | None = None,
    too_long: Literal["drop", "cut"] = "drop",
) -> Encoded:
    """Token ids and loss mask of a trajectory, up to its last agent token.

    Recorded ids are used as they are when every agent step has them; prompts that rewrite earlier
    turns begin a context of their own (`Encoded.later`). Where some or all steps have
    none (a scripted or oracle agent, an imported record), the conversation goes through the chat
    template, and the mask is proven: the pieces put together must equal the template's own
    rendering of the whole conversation, token by token, and in the last reply as text.

    Args:
        trajectory: A record of an episode.
        tokenizer: The trained model's.
        chat: The chat template; by default `agents.chat.ChatTemplate` over `tokenizer`.
        text_format: How tool calls are written and explained; by default `format_name`. Where the
            record names another, its system message is that one's and is written anew.
        max_tokens: The longest trajectory allowed, by its `len`: so many are computed where its
            contexts share what they have in common, and none of them is longer.
        too_long: What becomes of a longer one: refused, or, if it is one context, cut in the middle
            of its observations (`learners.data.cut`); `Encoded.cut_tokens` says by how much.

    Raises:
        Unusable: the trajectory cannot be trained on; its `reason` says why.
    """
    steps = trajectory.agent_steps
    if not steps:
        raise Unusable("no-agent-tokens", f"{_name(trajectory)} has no agent step.")
    if recorded(trajectory):
        encoded = _recorded(trajectory)
    else:
        from agents.chat import ChatTemplate

        # This is wrong for every record when it fails; what comes after, for this one.
        chat = chat or ChatTemplate(tokenizer)
        try:
            encoded = _templated(trajectory, tokenizer, chat, text_format or _format_of(trajectory))
            encoded = replace(encoded, templated=True, unused_ids=has_ids(trajectory))
        except (ToolError, ConfigError) as error:
            raise Unusable("format", f"{_name(trajectory)}: {error}") from error
    if max_tokens is None or len(encoded) <= max_tokens:
        return encoded
    problem = f"{_name(trajectory)} has {len(encoded)} tokens, max_tokens is {max_tokens}"
    if encoded.later:
        problem += f" (in {len(encoded.later) + 1} contexts, which are not cut)"
    elif too_long == "cut":
        from learners.data.cut import LEAST, cut_observations

        found = cut_observations(encoded, max_tokens, _note(tokenizer))
        if found is not None:
            return found
        problem += f", even with every observation cut to {LEAST} tokens"
    raise Unusable("too-long", f"{problem}.")


def recorded(trajectory: Trajectory) -> bool:
    """Whether every agent step has the token ids that were sampled: no chat template is needed."""
    return all(s.metrics and s.metrics.completion_token_ids for s in trajectory.agent_steps)


def has_ids(trajectory: Trajectory) -> bool:
    """Whether some agent step has them."""
    return any(s.metrics and s.metrics.completion_token_ids for s in trajectory.agent_steps)


def without_ids(trajectory: Trajectory) -> Trajectory:
    """The record as if its policy had told no tokens; itself where no agent step has any."""
    if not has_ids(trajectory):
        return trajectory
    steps = tuple(replace(step, metrics=None) for step in trajectory.steps)
    return replace(trajectory, steps=steps)


def answered(trajectory: Trajectory) -> list[tuple[Step, list[str]]]:
    """Each agent step with what the policy read behind it: its observation, then users' messages.

    Raises:
        Unusable: a system message stands there, which no observation can be.
    """
    found: list[tuple[Step, list[str]]] = []
    for step in trajectory.steps:
        if step.source == "agent":
            found.append((step, [step.observation.content] if step.observation else []))
        elif found and step.source == "system":
            raise Unusable(
                "format",
                f"{_name(trajectory)} has a system message behind agent turn {len(found)}, and "
                "only users can speak there.",
            )
        elif found:
            found[-1][1].append(step.message)
    return found


def _note(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], list[int]]:
    def note(dropped: int) -> list[int]:
        text = f"\n[... {dropped} tokens left out ...]\n"
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return note


def _recorded(trajectory: Trajectory) -> Encoded:
    """The recorded ids; each prompt is some of what came before it and something more."""
    contexts: list[tuple[int, list[tuple[Sequence[int], int]]]] = [(0, [])]
    length = 0
    for turn, step in enumerate(trajectory.agent_steps):
        metrics = step.metrics
        assert metrics is not None
        kept = metrics.prompt_prefix
        if kept > length:
            raise Unusable(
                "prompt-unknown",
                f"{_name(trajectory)}: the prompt of agent turn {turn + 1} keeps {kept} earlier "
                f"tokens, and there are {length}: its record is damaged.",
            )
        if kept < length:
            contexts.append((kept, []))
        new = [(metrics.prompt_token_ids, -1), (metrics.completion_token_ids, turn)]
        contexts[-1][1].extend(new)
        length = kept + len(metrics.prompt_token_ids) + len(metrics.completion_token_ids)
    (_, pieces), *rest = contexts
    later = tuple(LaterContext(kept, *_join(more, trajectory, kept)) for kept, more in rest)
    return Encoded(*_join(pieces, trajectory), later=later)


def _templated(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    text_format: Format,
) -> Encoded:
    messages, replies = _conversation(trajectory, text_format)
    pieces: list[tuple[Sequence[int], int]] = [(chat.prompt(messages), -1)]
    for turn, (reply, answers) in enumerate(replies):
        pieces.append((chat.completion(reply), turn))
        if turn + 1 < len(replies):
            pieces.append((chat.observation(*answers), -1))
            messages.append({"role": "assistant", "content": reply})
            messages += [{"role": "user", "content": answer} for answer in answers]
    encoded = Encoded(*_join(pieces, trajectory))
    whole = chat.prompt(messages)
    ours = encoded.input_ids[: len(encoded) - len(pieces[-1][0])]
    if tuple(whole) != ours:
        at = next((i for i, (a, b) in enumerate(zip(whole, ours, strict=False)) if a != b), None)
        where = min(len(whole), len(ours)) if at is None else at
        raise Unusable(
            "template",
            f"{_name(trajectory)}: token {where} differs between the turns put together and the "
            "chat template's rendering of the whole conversation, so the loss mask cannot be "
            "proven; record token ids, or use a template that is append-only.",
        )
    # As text: in a rendering the last reply's first characters may merge with what is before it.
    last: Message = {"role": "assistant", "content": replies[-1][0]}
    closed = chat.prompt([*messages, last, {"role": "user", "content": "next"}])
    if not _text(tokenizer, closed).startswith(_text(tokenizer, encoded.input_ids)):
        raise Unusable(
            "template",
            f"{_name(trajectory)}: the last agent turn is not what the chat template renders in "
            "the conversation, so the loss mask cannot be proven; record token ids, or use "
            "another template.",
        )
    return encoded


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _conversation(
    trajectory: Trajectory, text_format: Format
) -> tuple[list[Message], list[tuple[str, list[str]]]]:
    """(messages of the first state, [(reply, user messages behind it)] of each agent turn)."""
    first: list[Message] = []
    for step in trajectory.steps:
        if step.source == "agent":
            break
        if step.source != "system" or not explained_anew(trajectory, text_format.name):
            first.append({"role": step.source, "content": step.message})
    if not any(message["role"] == "system" for message in first):
        first.insert(0, {"role": "system", "content": text_format.system_prompt(trajectory.tools)})
    replies = []
    for turn, (step, answers) in enumerate(answered(trajectory)):
        if len(step.tool_calls) > 1:
            raise Unusable(
                "format",
                f"{_name(trajectory)} makes {len(step.tool_calls)} calls in agent turn {turn + 1}, "
                "and a text format writes one.",
            )
        replies.append((_reply(step, text_format), answers or [""]))
    return first, replies


def _reply(step: Step, text_format: Format) -> str:
    """What a model would have written: the message, and its tool call as the format has it."""
    if not step.tool_calls:
        return step.message
    call = step.tool_calls[0]
    action: Action = {"tool": call.function_name, "arguments": dict(call.arguments)}
    if step.message:
        action["message"] = step.message
    return text_format.render(action)


_BY_SERVER = "tools"
"""What a policy names as its format that has the server write and read its calls."""


def format_name(trajectory: Trajectory) -> str:
    """The text format in which a record's calls are written where the caller names none.

    Its own, or where it has none, as after function calling by a server, the project's default.
    """
    name = trajectory.agent.settings.get("format")
    return name if isinstance(name, str) and name != _BY_SERVER else DEFAULT_FORMAT


def explained_anew(trajectory: Trajectory, name: str) -> bool:
    """Whether a record's system message is for another way to write calls than this format."""
    own = trajectory.agent.settings.get("format")
    return isinstance(own, str) and own != name


def _format_of(trajectory: Trajectory) -> Format:
    from agents.parsing import get_format

    return get_format(format_name(trajectory))


def _join(
    pieces: Sequence[tuple[Sequence[int], int]], trajectory: Trajectory, before: int = 0
) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]:
    """Ids, mask and turns of a context, or of what is new in it behind `before` tokens."""
    ids: list[int] = []
    turns: list[int] = []
    for piece, turn in pieces:
        ids += piece
        turns += [turn] * len(piece)
    mask = tuple(turn >= 0 for turn in turns)
    if not any(mask) or (mask[0] and not before):
        raise Unusable(
            "no-agent-tokens", f"{_name(trajectory)} has no agent token with a context before it."
        )
    return tuple(ids), mask, tuple(turns)


def _name(trajectory: Trajectory) -> str:
    return f"Attempt {trajectory.attempt} of {trajectory.instance_id}"
