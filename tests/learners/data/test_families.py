"""Masks under the chat templates of the families people train, proven token by token.

Their tokenizers can't be downloaded here: small ones are trained that carry templates as data
(`tests/data/chat_templates.json`: what the families' do with messages, written anew and without
their branches for tools, and held to what their own render), with merges, so that a token may
straddle what it should not.
"""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import chat as templates
from agents.chat import ChatTemplate
from agents.parsing import get_format
from agents.policies.hub import fingerprint
from learners import TrainConfig
from learners.data import encode
from learners.losses import get_loss
from learners.training.prepare import build_dataset
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Agent
from tests.learners.own_templates import digest
from tests.learners.records import sampled, scripted

FAMILIES = json.loads((Path(__file__).parents[2] / "data" / "chat_templates.json").read_text())[
    "families"
]
APPEND_ONLY = [name for name, family in FAMILIES.items() if family["append_only"]]
INSTEAD = {"Qwen3": templates.CHATML, "GLM-4.5": templates.GLM}
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), max_size=40)
SAID = TEXT.map(str.strip).filter(bool)


@functools.cache
def tokenizer_of(name, template=None):
    """A byte-level BPE of 600 tokens, trained on code, with the family's special tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=FAMILIES[name]["specials"]
    )
    backend.train_from_iterator(Path(__file__).read_text().splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template or FAMILIES[name]["template"],
        additional_special_tokens=FAMILIES[name]["specials"], bos_token=FAMILIES[name].get("bos"),
    )  # fmt: skip


def conversation(said, seen):
    """A scripted trajectory: the agent's messages and, but for the last, what it saw."""
    record = scripted(actions=[("view", {"path": f"{i}.py"}) for i in range(len(said))])
    steps = [record.steps[0]]
    for step, message, text in zip(record.agent_steps, said, [*seen, "end"], strict=True):
        observed = dataclasses.replace(step.observation, content=text)
        steps.append(dataclasses.replace(step, message=message, observation=observed))
    return dataclasses.replace(record, steps=tuple(steps))


def proven(name, trajectory, tokenizer):
    """Ids and mask once more, from the rendering of the whole and the places of the replies in it.

    Nothing of `ChatTemplate` is used: a token is learned where its characters lie in a reply or in
    the token that ends it.
    """
    text_format = get_format("r2e")
    system = text_format.system_prompt(trajectory.tools)
    messages = [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": trajectory.steps[0].message})
    replies = []
    for step in trajectory.agent_steps:
        call = step.tool_calls[0]
        action = {"tool": call.function_name, "arguments": dict(call.arguments)}
        if step.message:
            action["message"] = step.message
        replies.append(text_format.render(action))
        messages.append({"role": "assistant", "content": replies[-1]})
        messages.append({"role": "user", "content": step.observation.content})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans, at = [], len(tokenizer.apply_chat_template(messages[:2], tokenize=False))
    for reply in replies:
        start = text.index(reply, at)
        at = text.index(FAMILIES[name]["end"], start + len(reply)) + len(FAMILIES[name]["end"])
        spans.append((start, at))
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    turns = []
    for start, stop in coded["offset_mapping"]:
        inside = [turn for turn, (a, b) in enumerate(spans) if a <= start and stop <= b]
        assert inside or all(stop <= a or b <= start for a, b in spans)  # no token straddles
        turns.append(inside[0] if inside else -1)
    last = max(i for i, turn in enumerate(turns) if turn >= 0) + 1
    return tuple(coded["input_ids"][:last]), tuple(turns[:last])


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(said=st.lists(SAID, min_size=3, max_size=3), seen=st.lists(SAID, min_size=2, max_size=2))
def test_the_mask_is_the_sampled_text_and_its_end_of_turn_token_by_token(name, said, seen):
    tokenizer = tokenizer_of(name, INSTEAD.get(name))
    trajectory = conversation(said, seen)
    encoded = encode(trajectory, tokenizer)
    ids, turns = proven(name, trajectory, tokenizer)
    assert encoded.input_ids == ids
    assert encoded.turn_ids == turns
    assert encoded.loss_mask == tuple(turn >= 0 for turn in turns)
    end = tokenizer.convert_tokens_to_ids(FAMILIES[name]["end"])
    sampled_ends = [i for i, m in zip(ids, encoded.loss_mask, strict=True) if m and i == end]
    assert len(sampled_ends) == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_templates_render_what_the_families_own_do(name):
    assert digest(tokenizer_of(name)) == FAMILIES[name]["sha256_of_own"]


@pytest.mark.parametrize("name", INSTEAD)
def test_templates_that_rewrite_earlier_turns_are_refused_with_a_way_out(name):
    with pytest.raises(ConfigError, match=r"not append-only .*chat_template .*chatml.*glm"):
        ChatTemplate(tokenizer_of(name))


def test_recorded_ids_ask_no_chat_template():
    """A hybrid's own template may be unfit, the ids that were sampled are as they are."""
    config = TrainConfig(model="m", buffer="b", out="o", loss="sft")
    tokenizer = tokenizer_of("Qwen3")
    own = sampled(agent=Agent(name="p", settings={"tokenizer": fingerprint(tokenizer)}))
    dataset = build_dataset([own], tokenizer, config, get_loss("sft"))
    assert dataset.samples[0].sequences[0] == encode(own, tokenizer)
    with pytest.raises(ConfigError, match="not append-only"):
        build_dataset([scripted()], tokenizer, config, get_loss("sft"))
