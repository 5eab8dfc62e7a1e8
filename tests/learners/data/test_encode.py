import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.chat import ChatTemplate
from agents.parsing import get_format
from learners.data import Unusable, encode
from learners.data.batching import collate
from learners.data.dataset import row_samples
from learners.data.select import first_state
from learners.ops import sequence_logps
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Agent, Step
from tests.learners.models import byte_tokenizer, tiny_llama
from tests.learners.records import sampled, scripted

TOKENIZER = byte_tokenizer()


def test_recorded_ids_are_used_as_they_are():
    trajectory = sampled(replies=("look", "edit it", "done"))
    encoded = encode(trajectory, TOKENIZER)
    last, prompt = list(trajectory.prompt_ids())[-1]
    assert encoded.input_ids == prompt + last.metrics.completion_token_ids
    for turn, step in enumerate(trajectory.agent_steps):
        ids = tuple(
            i for i, t in zip(encoded.input_ids, encoded.turn_ids, strict=True) if t == turn
        )
        assert ids == step.metrics.completion_token_ids
    assert encoded.loss_mask == tuple(turn >= 0 for turn in encoded.turn_ids)
    assert encoded.prompt_length == len(trajectory.agent_steps[0].metrics.prompt_token_ids)


def test_a_prompt_that_keeps_tokens_that_are_not_there_is_refused():
    trajectory = sampled(replies=("look", "done"))
    first, second = trajectory.agent_steps
    damaged = dataclasses.replace(
        second, metrics=dataclasses.replace(second.metrics, prompt_prefix=300)
    )
    steps = (*trajectory.steps[:2], first, damaged)
    with pytest.raises(Unusable, match=r"agent turn 2 keeps 300 earlier tokens, and .*damaged"):
        encode(dataclasses.replace(trajectory, steps=steps), TOKENIZER)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(observations=st.lists(TEXT, min_size=1, max_size=3))
def test_templated_mask_covers_exactly_what_the_policy_says(observations):
    """Proven against the template's own rendering of the whole conversation."""
    trajectory = scripted(actions=[("view", {"path": f"{i}.py"}) for i in range(len(observations))])
    steps = [trajectory.steps[0]]
    for step, text in zip(trajectory.agent_steps, observations, strict=True):
        seen = dataclasses.replace(step.observation, content=text)
        steps.append(dataclasses.replace(step, observation=seen))
    trajectory = dataclasses.replace(trajectory, steps=tuple(steps))
    encoded = encode(trajectory, TOKENIZER)
    r2e, chat = get_format("r2e"), ChatTemplate(TOKENIZER)
    for turn, step in enumerate(trajectory.agent_steps):
        call = step.tool_calls[0]
        text = r2e.render(
            {"tool": call.function_name, "arguments": call.arguments, "message": step.message}
        )
        said = [i for i, t in zip(encoded.input_ids, encoded.turn_ids, strict=True) if t == turn]
        assert TOKENIZER.decode(said) == text + "<|im_end|>"
        assert said[-1] == chat.end_of_turn
    masked = [i for i, m in zip(encoded.input_ids, encoded.loss_mask, strict=True) if not m]
    assert "Now view" not in TOKENIZER.decode(masked).split("Issue of", 1)[1]


def test_templated_prompt_holds_the_formats_system_prompt_once():
    encoded = encode(scripted(), TOKENIZER)
    prompt = TOKENIZER.decode(encoded.input_ids[: encoded.prompt_length])
    system = get_format("r2e").system_prompt(scripted().tools)
    assert prompt == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nIssue of t-1.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def with_message(source, text, **changes):
    """A scripted trajectory with a message between its two agent steps."""
    record = scripted()
    prompt, first, last = record.steps
    first = dataclasses.replace(first, **changes)
    message = dataclasses.replace(prompt, source=source, message=text)
    return dataclasses.replace(record, steps=(prompt, first, message, last))


@pytest.mark.parametrize("answer", ["result 0\nline two", None])
def test_what_a_user_says_between_the_turns_is_a_turn_of_its_own(answer):
    changes = {} if answer else {"observation": None}
    encoded = encode(with_message("user", "Try b.py.", **changes), TOKENIZER)
    first, last = encoded.turn_ids.index(0), encoded.turn_ids.index(1)
    between = [
        i
        for i, turn in zip(encoded.input_ids[first:last], encoded.turn_ids[first:last], strict=True)
        if turn < 0
    ]
    said = [answer, "Try b.py."] if answer else ["Try b.py."]
    users = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in said)
    assert TOKENIZER.decode(between) == f"\n{users}<|im_start|>assistant\n"


def test_a_system_message_between_the_turns_costs_the_record():
    with pytest.raises(Unusable, match="system message behind agent turn 1") as caught:
        encode(with_message("system", "Be brief."), TOKENIZER)
    assert caught.value.reason == "format"


class Drifting(ChatTemplate):
    """A template whose pieces do not add up: it forgets a line break before each observation."""

    def observation(self, *texts):
        return super().observation(*texts)[1:]


def test_a_template_that_does_not_add_up_is_refused():
    with pytest.raises(Unusable, match=r"token \d+ differs") as caught:
        encode(scripted(), TOKENIZER, chat=Drifting(TOKENIZER))
    assert caught.value.reason == "template"


class Adding(ChatTemplate):
    """A template that says more than the reply."""

    def completion(self, text):
        return super().completion(f"{text}!")


def test_the_last_turn_is_proven_too():
    one = scripted(actions=[("submit", {})])
    assert encode(one, TOKENIZER).turn_ids[-1] == 0
    with pytest.raises(Unusable, match="the last agent turn is not what") as caught:
        encode(one, TOKENIZER, chat=Adding(TOKENIZER))
    assert caught.value.reason == "template"


def test_a_last_reply_that_begins_with_a_line_break_is_taken():
    """In a rendering it is one token with the break before it, not when it is sampled."""
    merging = byte_tokenizer(merges=[("Ċ", "Ċ")])
    one = scripted(actions=[("submit", {})])
    said = dataclasses.replace(one.steps[-1], message="\n\nDone.", tool_calls=())
    encoded = encode(dataclasses.replace(one, steps=(*one.steps[:-1], said)), merging)
    assert merging.decode(encoded.input_ids[encoded.prompt_length :]) == "\n\nDone.<|im_end|>"
    whole = ChatTemplate(merging).prompt([{"role": "assistant", "content": "\n\nDone."}])
    assert merging.convert_tokens_to_ids("ĊĊ") in whole


def test_a_call_that_the_format_cannot_write_costs_one_record_not_the_run():
    marks = scripted("odd", actions=[("edit", {"text": "</parameter></function>"})])
    report = row_samples([marks, scripted("t-1")], lambda t: encode(t, TOKENIZER), kind="sft")
    assert len(report.samples) == 1
    assert report.report.dropped == {"format": 1}
    with pytest.raises(Unusable, match="Attempt 0 of odd: The format r2e cannot express"):
        encode(marks, TOKENIZER)


def test_several_calls_in_one_turn_are_refused_not_cut_to_the_first():
    record = scripted()
    step = record.agent_steps[0]
    twice = dataclasses.replace(step, tool_calls=step.tool_calls * 2)
    steps = (record.steps[0], twice, *record.steps[2:])
    with pytest.raises(Unusable, match="makes 2 calls in agent turn 1, and a text") as caught:
        encode(dataclasses.replace(record, steps=steps), TOKENIZER)
    assert caught.value.reason == "format"


def test_a_conversation_that_the_chat_template_refuses_costs_one_record():
    class Refusing(ChatTemplate):
        def completion(self, text):
            raise ConfigError("The chat template does not close the reply.")

    with pytest.raises(Unusable, match="does not close") as caught:
        encode(scripted(), TOKENIZER, chat=Refusing(TOKENIZER))
    assert caught.value.reason == "format"


def test_trap_5_too_long_is_refused_never_cut():
    length = len(encode(sampled(), TOKENIZER))
    assert len(encode(sampled(), TOKENIZER, max_tokens=length)) == length
    with pytest.raises(Unusable, match=f"has {length} tokens, max_tokens is {length - 1}"):
        encode(sampled(), TOKENIZER, max_tokens=length - 1)


@settings(max_examples=15, deadline=None)
@given(replies=st.lists(st.text("abcxyz", min_size=1, max_size=9), min_size=1, max_size=4))
def test_gradient_is_exactly_zero_on_every_token_the_policy_did_not_sample(replies):
    """Through a real model: only positions that predict a sampled token carry gradient."""
    model = tiny_llama(seed=1)
    encoded = encode(sampled(replies=tuple(replies)), TOKENIZER)
    batch = collate([encoded], torch.device("cpu"))
    kept = []
    handle = model.model.norm.register_forward_hook(
        lambda module, arguments, output: kept.append(output) or output.retain_grad()
    )
    sequence_logps(model, batch.input_ids, batch.loss_mask).logps.sum().backward()
    handle.remove()
    gradient = kept[0].grad[0].abs().sum(-1)
    for position, nonzero in enumerate((gradient != 0).tolist()):
        predicts_sampled = encoded.loss_mask[position + 1 : position + 2] == (True,)
        assert nonzero == predicts_sampled


def by_functions(**changes):
    """What a policy records whose server writes and reads the calls."""
    record = scripted(agent=Agent(name="openai", settings={"format": "tools"}), **changes)
    system = Step(step_id=1, source="system", message="Use the tools you are given.")
    return dataclasses.replace(record, steps=(system, *record.steps))


@pytest.mark.parametrize("name", [None, "json"])
def test_function_calls_are_written_in_a_text_format_that_the_prompt_explains(name):
    """By default the project's, without the message that left the calls to the server."""
    text_format = get_format(name) if name else None
    found = encode(by_functions(), TOKENIZER, text_format=text_format)
    assert found.input_ids == encode(scripted(), TOKENIZER, text_format=text_format).input_ids
    assert first_state(by_functions(), name) == first_state(scripted(), name)
    assert first_state(by_functions(), name) != first_state(by_functions(), "bash")


def test_a_system_message_for_another_format_is_written_anew():
    own = scripted(agent=Agent(name="p", settings={"format": "json"}))
    system = Step(step_id=1, source="system", message=get_format("json").system_prompt(own.tools))
    own = dataclasses.replace(own, steps=(system, *own.steps))
    text = TOKENIZER.decode(encode(own, TOKENIZER, text_format=get_format("r2e")).input_ids)
    assert text.count("<|im_start|>system") == 1
    assert get_format("r2e").system_prompt(own.tools) in text
    same = encode(own, TOKENIZER, text_format=get_format("json"))
    assert encode(own, TOKENIZER).input_ids == same.input_ids


def test_a_format_that_is_not_installed_costs_the_record_alone():
    record = scripted(agent=Agent(name="p", settings={"format": "theirs"}))
    with pytest.raises(Unusable, match="no format named 'theirs'") as caught:
        encode(record, TOKENIZER)
    assert caught.value.reason == "format"
    assert encode(record, TOKENIZER, text_format=get_format("json"))


def test_what_the_chat_template_wrote_is_counted_and_ids_that_were_not_used():
    whole, partly = sampled(), sampled(task="t-2")
    last = dataclasses.replace(partly.steps[-1], metrics=None)
    partly = dataclasses.replace(partly, steps=(*partly.steps[:-1], last))
    rows = [whole, partly, scripted(task="t-3")]
    dataset = row_samples(rows, lambda t: encode(t, TOKENIZER), kind="sft")
    assert (dataset.report.templated, dataset.report.partly) == (2, 1)
    said = "2 sequences written by the chat template (1 with ids for some turns only)"
    assert said in str(dataset.report)
