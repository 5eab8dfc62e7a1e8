from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import peft
import pytest
import torch

from agents.policies import hub
from agents.policies.base import Episode, EpisodeOver, Policy, Turn
from agents.policies.prompting import CONDENSED
from agents.policies.transformers import TransformersPolicy
from swe_env.errors import ConfigError, ModelError
from swe_env.types import PublicTask
from tests.agents.models import recomputed, save_tiny

VIEW = "<function=view>\n<parameter=path>a.py</parameter>\n</function>"
TOOL = {
    "type": "function",
    "function": {
        "name": "view",
        "description": "Show a file.",
        "parameters": {"properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}


def observation(text):
    return {"text": text, "tool": "", "exit_code": 0, "steps_left": 9}


def episode(seed=0, issue="Issue: it fails."):
    names = ("instance_id", "repo", "base_commit", "problem_statement", "hints_text", "version")
    task = PublicTask(**dict.fromkeys(names, "x"), test_command="pytest")
    return Episode(task=task, first=observation(issue), tools=[TOOL], seed=seed)


def after(state, action, text="seen"):
    return replace(state, turns=[*state.turns, Turn(action=action, observation=observation(text))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def policy(folder):
    with TransformersPolicy(
        folder, temperature=1, top_k=0, top_p=0, max_new_tokens=24, dtype="float32", device="cpu"
    ) as made:
        yield made


def test_it_is_a_policy_that_says_how_it_samples(policy, folder):
    assert isinstance(policy, Policy)
    assert policy.agent.model_name == folder
    assert policy.agent.adapter == ""
    settings = policy.agent.settings
    assert settings["tokenizer"] == hub.fingerprint(policy.tokenizer)
    assert (settings["format"], settings["temperature"], settings["context"]) == ("r2e", 1, 4096)


def test_a_prompt_is_what_was_sampled_before_and_what_the_template_adds(policy):
    state = episode()
    system = policy.format.system_prompt([TOOL])
    first = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nIssue: it fails.<|im_end|>\n"
    )
    known = policy.tokenizer.encode(f"{first}<|im_start|>assistant\n", add_special_tokens=False)
    for turn in range(3):
        action = policy.act(state)
        completion = action["completion"]
        assert completion["prompt_token_ids"] == known
        torch.testing.assert_close(
            torch.tensor(completion["logprobs"]),
            recomputed(policy._engine.model, known, completion["token_ids"]),
            atol=1e-3,
            rtol=0,
        )
        closing = [] if completion["token_ids"][-1] == policy.chat.end_of_turn else ["<|im_end|>"]
        known = [
            *known,
            *completion["token_ids"],
            *policy.tokenizer.convert_tokens_to_ids(closing),
            *policy.chat.observation(f"seen {turn}"),
        ]
        state = after(state, action, f"seen {turn}")


def test_turns_of_another_policy_are_tokenised_from_their_text(policy):
    call = {"tool": "view", "arguments": {"path": "a.py"}}
    wanted = f"{VIEW}<|im_end|>\n<|im_start|>user\nseen<|im_end|>\n<|im_start|>assistant\n"
    for action in (call, {**call, "message": VIEW}):
        text = policy.tokenizer.decode(policy.prompt(after(episode(), action)))
        assert text.endswith(f"assistant\n{wanted}")
    thought = policy.tokenizer.decode(policy.prompt(after(episode(), {**call, "message": "Hm."})))
    assert thought.endswith(f"assistant\nHm.\n{wanted}")


def test_a_malformed_reply_is_an_invalid_call_that_says_how_to_do_it_right(policy):
    action = policy.act(episode())
    assert action["tool"] == "invalid"
    assert "<function=" in action["arguments"]["reason"]
    ids = action["completion"]["token_ids"]
    assert action["message"] == policy.tokenizer.decode(ids).removesuffix("<|im_end|>")


def sampled(policy, monkeypatch, text):
    """The ids of a text that the policy samples from here on, whatever its model says."""
    said = policy.tokenizer.encode(text, add_special_tokens=False)
    forced = iter(said)

    def scripted(logits, uniforms, sampling):
        return torch.tensor([next(forced)]), torch.zeros(1)

    monkeypatch.setattr("agents.policies.sampling.engine.draw", scripted)
    policy.max_new_tokens = 200
    return said


def test_a_call_is_read_and_sampling_stops_with_it(policy, monkeypatch):
    said = sampled(policy, monkeypatch, f"I look.\n{VIEW} and on")
    state = episode()
    action = policy.act(state)
    assert (action["tool"], action["arguments"]) == ("view", {"path": "a.py"})
    assert action["message"] == f"I look.\n{VIEW}"
    assert action["completion"]["token_ids"] == said[: -len(" and on")]
    # The end-of-turn token was not sampled: it belongs to the next prompt.
    following = policy.tokenizer.decode(policy.prompt(after(state, action)))
    assert following.endswith(
        f"{VIEW}<|im_end|>\n<|im_start|>user\nseen<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_stop_string_inside_an_argument_ends_no_reply(policy, monkeypatch):
    call = (
        "<function=bash>\n<parameter=command>grep '</function>' a.py</parameter>\n"
        "<parameter=timeout>9</parameter>\n</function>"
    )
    sampled(policy, monkeypatch, f"{call} and on")
    action = policy.act(episode())
    assert action["arguments"] == {"command": "grep '</function>' a.py", "timeout": "9"}
    assert action["message"] == call


def test_attempts_in_flight_together_are_those_made_alone(policy):
    states = [episode(seed, f"Issue {seed % 2}") for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(policy.act, states))
    alone = [policy.act(state) for state in states]
    ids = [action["completion"]["token_ids"] for action in together]
    assert ids == [action["completion"]["token_ids"] for action in alone]
    assert len({tuple(row) for row in ids}) == 8


def test_a_full_context_ends_the_episode_by_name(folder):
    size = {"dtype": "float32", "device": "cpu"}
    with TransformersPolicy(folder, context=100, **size) as small:
        assert len(small.prompt(episode())) > 100
        with pytest.raises(ModelError, match=r"first prompt is too long already.* of 100"):
            small.act(episode())
        with pytest.raises(EpisodeOver, match="tokens"):
            small.act(after(episode(), {"tool": "view", "arguments": {}}))
        room = len(small.prompt(episode())) + 5
    with TransformersPolicy(folder, context=room, max_new_tokens=50, **size) as cut:
        with pytest.raises(EpisodeOver, match="tokens") as over:
            cut.act(episode())
        assert cut.stats.generated == 5
        assert len(over.value.action["completion"]["token_ids"]) == 5
        assert len(over.value.action["completion"]["prompt_token_ids"]) == room - 5


def test_old_observations_are_condensed_when_a_reply_has_no_room(folder):
    size = {"dtype": "float32", "device": "cpu", "max_new_tokens": 20, "temperature": 1}
    with TransformersPolicy(folder, **size) as whole:
        start, replies = len(whole.prompt(episode())), []
        state = episode()
        texts = [f"file {number}: " + "some words of it " * 30 for number in range(5)]
        for text in texts:
            action = whole.act(state)
            replies.append(action["message"])
            state = after(state, action, text)
        full = whole.prompt(state)
        one = len(whole.chat.observation(texts[0]))
        note = len(whole.chat.observation(CONDENSED.format(len(texts[0]))))
    context, most = len(full) + 10, len(full) - 3 * (one - note)
    settings = {"context": context, "condense": (most + 0.5) / context}
    with TransformersPolicy(folder, **size, **settings) as condensing:
        assert condensing.agent.settings["condense"] == settings["condense"]
        shorter = replace(state, turns=state.turns[:4])
        assert condensing.prompt(shorter) == full[: len(whole.prompt(shorter))]  # there is room
        ids = condensing.prompt(state)
        assert ids[:start] == full[:start]
        assert len(ids) == most
        said = condensing.tokenizer.decode(ids)
        assert said.count("[an earlier observation of 518 characters, left out") == 3
        assert [text in said for text in texts] == [False] * 3 + [True] * 2
        assert all(reply in said for reply in replies)
        # The turns behind it go on from what was sampled from.
        action = condensing.act(state)
        assert action["completion"]["prompt_token_ids"] == ids
        following = condensing.prompt(after(state, action))
        assert following[: len(ids)] == ids
    with TransformersPolicy(folder, **size, context=context) as plain:
        assert plain.prompt(state) == full


def test_earlier_reasoning_is_left_out_of_prompts_on_request(folder):
    settings = {"dtype": "float32", "device": "cpu", "max_new_tokens": 20, "temperature": 1}
    with TransformersPolicy(folder, **settings, keep_reasoning=False) as policy:
        assert policy.agent.settings["keep_reasoning"] is False
        chat, state, prompts = policy.chat, episode(), []
        for turn in range(3):
            text = f"<think>why {turn}</think>\n\nsay {turn}"
            prompts.append(policy.prompt(state))
            ids = {"token_ids": chat.completion(text), "prompt_token_ids": prompts[-1]}
            action = {"tool": "view", "arguments": {}, "message": text, "completion": ids}
            state = after(state, action, f"saw {turn}")
        for turn in range(2):  # each goes on from the one before it, without what that thought
            spoken = chat.completion(f"say {turn}") + chat.observation(f"saw {turn}")
            assert prompts[turn + 1] == prompts[turn] + spoken
        scripted = {"tool": "view", "arguments": {"path": "a"}, "message": "<think>a</think>b"}
        said = policy.tokenizer.decode(policy.prompt(after(state, scripted)))
        assert "<think>" not in said
        assert "b\n<function=view>" in said.replace("\n\n", "\n")
        whole = state
    with TransformersPolicy(folder, **settings) as keeping:
        assert "keep_reasoning" not in keeping.agent.settings
        assert keeping.tokenizer.decode(keeping.prompt(whole)).count("<think>why") == 1


@pytest.mark.parametrize("condense", [0.0, 1.0, -1.0])
def test_condensing_to_no_share_is_refused(folder, condense):
    with pytest.raises(ConfigError, match="condense is a share of the context"):
        TransformersPolicy(folder, condense=condense)


def test_a_closed_policy_says_so(policy):
    policy.close()
    with pytest.raises(ModelError, match="closed"):
        policy.act(episode())


def test_an_adapter_acts_and_is_recorded_by_its_hash(folder, tmp_path):
    model, _ = hub.load(folder, dtype="float32", device="cpu")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    settings = {"max_new_tokens": 12, "temperature": 0, "dtype": "float32", "device": "cpu"}
    said = {}
    for name, options in {
        "base": {},
        "beside": {"adapter": tmp_path / "adapter", "merge": False},
        "merged": {"adapter": tmp_path / "adapter"},  # by itself in float32
    }.items():
        with TransformersPolicy(folder, **options, **settings) as policy:
            said[name] = policy.act(episode())["completion"]
            agent = policy.agent
            assert (agent.settings["merged"], "@sha256:" in agent.adapter) == (
                name == "merged",
                name != "base",
            )
            torch.testing.assert_close(
                torch.tensor(said[name]["logprobs"]),
                recomputed(
                    policy._engine.model,
                    said[name]["prompt_token_ids"],
                    said[name]["token_ids"],
                ),
                atol=1e-3,
                rtol=0,
            )
    assert said["base"]["token_ids"] != said["beside"]["token_ids"]
    assert said["beside"]["token_ids"] == said["merged"]["token_ids"]
    other = save_tiny(tmp_path / "other", hidden_size=64)
    with pytest.raises(ConfigError, match="does not fit"):
        TransformersPolicy(other, tmp_path / "adapter", **settings)


@pytest.mark.model
def test_smollm2_records_what_a_full_forward_pass_gives():
    with TransformersPolicy("smollm2", max_new_tokens=16, dtype="float32", device="cpu") as policy:
        states = [episode(seed, f"Issue {seed}: `f` fails." * (seed + 1)) for seed in range(3)]
        for _ in range(2):
            with ThreadPoolExecutor(3) as threads:
                actions = list(threads.map(policy.act, states))
            states = [after(*pair) for pair in zip(states, actions, strict=True)]
        for action in actions:
            completion = action["completion"]
            torch.testing.assert_close(
                torch.tensor(completion["logprobs"]),
                recomputed(
                    policy._engine.model, completion["prompt_token_ids"], completion["token_ids"]
                ),
                atol=1e-3,
                rtol=0,
            )
