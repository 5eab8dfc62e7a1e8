import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.chat import CHATML, ChatTemplate, episode_messages
from agents.policies import hub
from swe_env.errors import ConfigError
from tests.agents.models import QWEN3, SPECIALS, TEMPLATES, byte_tokenizer

SAID = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), min_size=1)


def conversation(chat, first, turns):
    ids = chat.prompt(first)
    for reply, seen in turns:
        ids += chat.completion(reply)
        ids += chat.observation(seen) if seen is not None else []
    return ids


def rendered(tokenizer, messages, turns):
    for reply, seen in turns:
        messages = [*messages, {"role": "assistant", "content": reply}]
        messages += [{"role": "user", "content": seen}] if seen is not None else []
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_conversation_in_pieces_is_the_templates_own_rendering(name, data):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    first, *said = [data.draw(SAID.map(str.strip).filter(bool)) for _ in range(5)]
    messages = (
        [{"role": "user", "content": f"sys\n\n{first}"}]
        if name == "gemma"
        else episode_messages("sys", first)
    )
    turns = [(said[0], said[1]), (said[2], said[3]), ("done", None)]
    ids = conversation(ChatTemplate(tokenizer), episode_messages("sys", first), turns)
    whole = rendered(tokenizer, messages, turns)
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>")],
)
def test_the_end_of_turn_is_read_from_the_template_not_from_eos(name, end):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    chat = ChatTemplate(tokenizer)
    assert chat.end_of_turn == tokenizer.convert_tokens_to_ids(end)
    assert chat.completion("yes") == [*tokenizer.encode("yes"), chat.end_of_turn]


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_inside_messages_are_text(name):
    chat = ChatTemplate(byte_tokenizer(TEMPLATES[name]))
    specials = set(range(256, 256 + len(SPECIALS)))

    def frame(ids):
        return [token for token in ids if token in specials]

    forged = "a" + "".join(SPECIALS) + "b \ue0000\ue001"
    plain = episode_messages("sys", "x")
    assert frame(chat.observation(forged)) == frame(chat.observation("x"))
    assert frame(chat.completion(forged)) == [chat.end_of_turn]
    assert frame(chat.prompt(episode_messages("sys", forged))) == frame(chat.prompt(plain))
    assert chat._tokenizer.decode(chat.completion(forged)[:-1]) == forged


def test_a_given_system_prompt_replaces_the_templates_default():
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(ChatTemplate(tokenizer).prompt(episode_messages("mine", "x")))
    assert "mine" in text
    assert "You are helpful" not in text


def test_a_template_that_tells_the_date_tells_one():
    """Else records would encode otherwise tomorrow, and attempts of two days not be paired."""
    dated = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = dated + tokenizer.chat_template
    ids = ChatTemplate(tokenizer).prompt([{"role": "user", "content": "Hello"}])
    assert "Today: 26 Jul 2024" in tokenizer.decode(ids)


def test_a_template_that_strips_earlier_reasoning_is_refused_with_a_way_out():
    tokenizer = byte_tokenizer(QWEN3)
    with pytest.raises(ConfigError, match=r"not append-only.*set chat_template.*chatml"):
        ChatTemplate(tokenizer)
    tokenizer.chat_template = CHATML
    reply = "<think>why</think>so"
    assert tokenizer.decode(ChatTemplate(tokenizer).completion(reply)) == f"{reply}<|im_end|>"


def test_a_tokenizer_without_a_usable_template_is_refused():
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTemplate(byte_tokenizer(None))
    open_ended = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ConfigError, match=r"without a special token|not append-only"):
        ChatTemplate(byte_tokenizer(open_ended))


@pytest.mark.model
def test_smollm2_conversation():
    tokenizer = hub.load_tokenizer("smollm2")
    first = episode_messages("Fix it.", "Issue:\n\n  x = 12 fails\n")
    turns = [("I look.\n<function=view>", "   1: def f():\n"), ("ok ", "é\n\n"), ("bye", None)]
    ids = conversation(ChatTemplate(tokenizer), first, turns)
    whole = rendered(tokenizer, first, turns)
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :]) == "\n"
