"""Exports and imports proven with the other side's own code; writes JSON, exit code 1 on a failure.

A small buffer is exported with `swe buffer export`, then each peer, in a virtual environment that
this script makes under `--venvs`, does with the files what its users do: TRL's DPO, KTO and SFT
trainers take a step on a tiny random model, LLaMA-Factory converts every row, Minari loads its
dataset, Harbor's ATIF models validate every document, SWE-bench's harness reads the predictions.
mini-swe-agent runs real episodes with its deterministic models, and what it wrote is imported with
`swe buffer import`.

    python benchmarks/interop.py --out benchmarks/results/interop.json

Harbor needs Python 3.12 (``PYTHON_HARBOR`` names the interpreter when it is not on the PATH).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMATS = (
    "trl-preference",
    "trl-kto",
    "trl-sft",
    "llamafactory-preference",
    "llamafactory-kto",
    "llamafactory-sft",
    "preds",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=Path("~/.cache/swe-env-peers").expanduser())
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--as-peer", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        print(json.dumps(PEERS[options.as_peer][0](options.folder)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="swe-interop-") as name:
        folder = Path(name)
        make_buffer(folder / "buffer")
        for kind in FORMATS:
            where = ["--where", "attempt=0"] if kind == "preds" else []
            out = folder / kind / f"{kind}.jsonl"
            swe("buffer", "export", str(folder / "buffer"), "-f", kind, "--out", str(out), *where)
        swe("buffer", "export", f"{folder}/buffer", "-f", "atif", "--out", f"{folder}/atif")
        for peer in options.only.split(","):
            results[peer] = prove(peer, folder, options.venvs)
            print(f"{peer}: {'ok' if results[peer]['ok'] else 'FAILED'}", file=sys.stderr)
    text = json.dumps({"python": sys.version.split()[0], "peers": results}, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    sys.exit(any(not result["ok"] for result in results.values()))


def prove(peer: str, folder: Path, venvs: Path) -> dict[str, Any]:
    import peers

    try:
        printed = peers.run(
            peer, venvs, str(Path(__file__).resolve()), "--as-peer", peer, "--folder", str(folder)
        )
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        check = PEERS[peer][1]
        if check is not None:
            found |= check(folder)
    except (RuntimeError, AssertionError, subprocess.CalledProcessError, OSError) as error:
        traceback.print_exc()
        return {"ok": False, "error": str(error)[-2000:]}
    return {"ok": True, **found}


def swe(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from swe_env.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    if done.returncode:
        raise RuntimeError(f"swe {' '.join(arguments)} failed: {done.stderr}")
    return done.stdout


def make_buffer(folder: Path) -> None:
    """Four tasks with two resolved and two unresolved attempts, one failure, one of each kind."""
    from swe_env.replay import ReplayBuffer

    with ReplayBuffer(folder) as buffer:
        for task in range(4):
            for attempt in range(4):
                buffer.append(episode(f"project__pkg-{task}", attempt, resolved=attempt % 2 == 0))
        buffer.append(episode("project__pkg-0", 9, resolved=False, failed=True))
        buffer.append(episode("project__pkg-9", 0, resolved=True, apart=True))
        buffer.append(episode("project__pkg-9", 1, resolved=False, apart=True))


def episode(
    task: str, attempt: int, *, resolved: bool, failed: bool = False, apart: bool = False
) -> Any:
    from swe_env.replay import Agent, Metrics, Step, StepObservation, ToolCall, Trajectory
    from swe_env.types import Failure, TestReport

    calls = [
        ("view", {"path": "pkg/mod.py", "view_range": [1, 20 + attempt]}),
        ("edit", {"path": "pkg/mod.py", "old": "a - b", "new": f"a + b  # {attempt}"}),
        ("submit", {}),
    ]
    steps = [
        Step(step_id=1, source="system", message="You fix bugs. One call a turn."),
        Step(step_id=2, source="user", message=f"`add` of {task} subtracts. Ünïcode: 数"),
    ]
    context = 0
    for number, (tool, arguments) in enumerate(calls):
        written = "".join(f"<parameter={k}>{v}</parameter>\n" for k, v in arguments.items())
        text = f"I go on ({number}).\n<function={tool}>\n{written}</function>"
        prompt, sampled = tuple(range(40, 60)), tuple(range(100, 130))
        steps.append(
            Step(
                step_id=len(steps) + 1,
                source="agent",
                message="" if apart else text,
                tool_calls=(
                    ToolCall(
                        function_name=tool, arguments=arguments, tool_call_id=f"call_{number}"
                    ),
                ),
                observation=StepObservation(content=f"line {number}\x00 of {task}", exit_code=0),
                metrics=Metrics(
                    prompt_prefix=context,
                    prompt_token_ids=prompt,
                    completion_token_ids=sampled,
                    logprobs=tuple(-0.01 * k for k in range(30)),
                ),
            )
        )
        context += len(prompt) + len(sampled)
    tool_schema = {
        "type": "function",
        "function": {
            "name": "view",
            "description": "Show a file.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        },
    }
    outcome = "passed" if resolved else "failed"
    report = TestReport(
        resolved=resolved,
        fraction=float(resolved),
        fail_to_pass={"tests/test_mod.py::test_add": outcome},
        pass_to_pass={"tests/test_mod.py::test_sub": "passed"},
    )
    patch = "diff --git a/pkg/mod.py b/pkg/mod.py\n--- a/pkg/mod.py\n+++ b/pkg/mod.py\n"
    return Trajectory(
        instance_id=task,
        agent=Agent(name="proof", model_name="tiny", settings={} if apart else {"format": "r2e"}),
        steps=tuple(steps),
        attempt=attempt,
        reward=float(resolved),
        resolved=resolved,
        finished=not failed,
        failure=Failure(kind="sandbox", message="lost") if failed else None,
        report=None if failed else report,
        patch=f"{patch}@@ -1 +1 @@\n-a - b\n+a + b  # {attempt}\n",
        tools=(tool_schema,),
    )


# -- what each peer does, in its own environment -------------------------------------------------


def trl(folder: Path) -> dict[str, Any]:
    import datasets
    import torch
    import trl
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()

    def rows(kind: str) -> Any:
        path = str(folder / kind / f"{kind}.jsonl")
        return datasets.load_dataset(
            "json", data_files=path, split="train", cache_dir=str(folder / "cache")
        )

    torch.manual_seed(0)
    tiny = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(tiny).save_pretrained(folder / "tiny")  # the reference is loaded from a path

    def step(name: str, kind: str) -> dict[str, Any]:
        model = LlamaForCausalLM.from_pretrained(folder / "tiny")
        before = [p.detach().clone() for p in model.parameters()]
        config = getattr(trl, f"{name}Config")(
            output_dir=str(folder / f"out-{name}"),
            max_steps=1,
            per_device_train_batch_size=4,
            max_length=4096,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            bf16=False,
            use_cpu=True,
        )
        data = rows(kind)
        trainer = getattr(trl, f"{name}Trainer")(
            model=model, args=config, train_dataset=data, processing_class=tokenizer
        )
        trainer.train()
        loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        changed = sum(
            not torch.equal(a, b.detach())
            for a, b in zip(before, trainer.model.parameters(), strict=True)
        )
        assert abs(loss) < 1e6, loss  # false for NaN too
        assert changed > 0, "no parameter moved"
        return {"rows": len(data), "loss": round(loss, 4), "parameters_changed": changed}

    return {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "DPOTrainer": step("DPO", "trl-preference"),
        "KTOTrainer": step("KTO", "trl-kto"),
        "SFTTrainer": step("SFT", "trl-sft"),
    }


def tiny_tokenizer() -> Any:
    """Bytes as tokens, and a ChatML template that shows tool calls."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": special[:2]})
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
        "{% if m.get('tool_calls') %}{% for c in m['tool_calls'] %}"
        "<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast


def llamafactory(folder: Path) -> dict[str, Any]:
    """Its own reader of ``dataset_info.json`` and its converter, on every row."""
    from importlib.metadata import version

    from llamafactory.data.converter import SharegptDatasetConverter
    from llamafactory.data.parser import get_dataset_list

    found: dict[str, Any] = {"llamafactory": version("llamafactory")}
    for kind in ("preference", "kto", "sft"):
        where = folder / f"llamafactory-{kind}"
        (entry,) = get_dataset_list([f"llamafactory-{kind}"], str(where))
        assert entry.ranking is (kind == "preference")
        convert = SharegptDatasetConverter(entry, None)
        lines = (where / f"llamafactory-{kind}.jsonl").read_text().splitlines()
        for line in lines:
            row = convert(json.loads(line))
            assert row["_prompt"], "it skipped the row as abnormal"
            assert len(row["_response"]) == (1 if kind == "sft" else 2)
            assert row["_system"] == "You fix bugs. One call a turn."
        found[kind] = len(lines)
    return found


def minari(folder: Path) -> dict[str, Any]:
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    import minari

    from swe_env.replay import ReplayBuffer
    from swe_env.replay.export import write

    buffer = ReplayBuffer(folder / "buffer")
    done = write(buffer.filter(failure=""), "minari", "swe/proof-v0")
    dataset = minari.load_dataset("swe/proof-v0")
    episodes = list(dataset.iterate_episodes())
    records = list(buffer.filter(failure=""))
    assert done.rows == dataset.total_episodes == len(episodes) == len(records)
    for record, seen in zip(records, episodes, strict=True):
        assert len(seen.actions) == len(record.agent_steps)
        for text in seen.observations:
            assert dataset.observation_space.contains(text)
        for step, text in zip(record.agent_steps, seen.actions, strict=True):
            assert dataset.action_space.contains(text)
            action = json.loads(text)
            assert action["tool"] == step.tool_calls[0].function_name
            assert action["arguments"] == step.tool_calls[0].arguments
        assert float(sum(seen.rewards)) == record.reward
        assert bool(seen.terminations[-1]) is record.finished
    assert len(dataset.sample_episodes(5)) == 5
    return {
        "minari": minari.__version__,
        "episodes": len(episodes),
        "steps": int(dataset.total_steps),
    }


def harbor(folder: Path) -> dict[str, Any]:
    from importlib.metadata import version

    from harbor.models.trajectories import Trajectory

    documents = sorted((folder / "atif").glob("*.json"))
    steps = tokens = 0
    for path in documents:
        validated = Trajectory.model_validate_json(path.read_text())
        steps += len(validated.steps)
        for step in validated.steps:
            if step.metrics is not None:
                assert len(step.metrics.logprobs) == len(step.metrics.completion_token_ids)
                tokens += len(step.metrics.completion_token_ids)
    assert documents
    return {
        "harbor": version("harbor"),
        "python": sys.version.split()[0],
        "documents": len(documents),
        "steps": steps,
        "completion_tokens": tokens,
    }


def swebench(folder: Path) -> dict[str, Any]:
    from importlib.metadata import version

    from swebench.harness.utils import get_predictions_from_file

    path = folder / "preds" / "preds.jsonl"
    predictions = get_predictions_from_file(str(path), "unused", "test")
    assert len({p["instance_id"] for p in predictions}) == len(predictions) == 5
    assert all(p["model_patch"].startswith("diff --git") for p in predictions)
    return {"swebench": version("swebench"), "predictions": len(predictions)}


def mini(folder: Path) -> dict[str, Any]:
    """Real episodes of mini-swe-agent in a real repository; nothing of the model is random."""
    os.environ["MSWEA_SILENT_STARTUP"] = "1"
    os.environ["MSWEA_GLOBAL_CONFIG_DIR"] = str(folder / "mini-config")
    import minisweagent
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.exceptions import FormatError
    from minisweagent.models import test_models as models

    submit = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && git add -A && git diff --cached"
    commands = ["cat mod.py", "sed -i 's/a - b/a + b/' mod.py", "false", submit]

    class Refusing(models.DeterministicModel):
        """Refuses its second reply, as its text models do when they find no command in it."""

        def query(self, messages: list[dict[str, str]], **kwargs: Any) -> dict[str, Any]:
            if self.current_index == 0:
                self.current_index += 1
                raise FormatError(
                    {
                        "role": "user",
                        "content": "Give exactly one command.",
                        "extra": {"model_response": "I forgot the command."},
                    }
                )
            return dict(super().query(messages, **kwargs))

    def fenced() -> Any:
        outputs = [
            models.make_output(f"Next: {k}\n\n```mswea_bash_command\n{c}\n```", [{"command": c}])
            for k, c in enumerate(commands)
        ]
        return models.DeterministicModel(outputs=outputs)

    def refusing() -> Any:
        text = "Go\n\n```mswea_bash_command\n{}\n```"
        outputs = [
            models.make_output(text.format(c), [{"command": c}])
            for c in ("ls", "never run", *commands[1:2], submit)
        ]
        return Refusing(outputs=outputs)

    def called() -> Any:
        outputs = []
        for k, c in enumerate(commands):
            call = {
                "id": f"call_{k}",
                "type": "function",
                "function": {"name": "bash", "arguments": json.dumps({"command": c})},
            }
            actions = [{"command": c, "tool_call_id": f"call_{k}"}]
            outputs.append(models.make_toolcall_output(f"Next: {k}", [call], actions))
        return models.DeterministicToolcallModel(outputs=outputs)

    def run(name: str, model: Any, **limits: Any) -> None:
        repo = folder / "mini-repos" / name
        repo.mkdir(parents=True)
        (repo / "mod.py").write_text("def add(a, b):\n    return a - b\n")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*git, "init", "-q"], cwd=repo, check=True)
        subprocess.run([*git, "add", "-A"], cwd=repo, check=True)
        subprocess.run([*git, "commit", "-qm", "base"], cwd=repo, check=True)
        path = folder / "mini-runs" / name / f"{name}.traj.json"
        agent = DefaultAgent(
            model,
            LocalEnvironment(cwd=str(repo)),
            system_template="You fix bugs.",
            instance_template="Fix this: {{task}}",
            output_path=path,
            cost_limit=0.0,
            **limits,
        )
        agent.run(task="add subtracts")

    run("project__fenced-1", fenced())
    run("project__called-1", called())
    run("project__refused-1", refusing())
    run("project__limited-1", fenced(), step_limit=2)
    return {"mini-swe-agent": minisweagent.__version__, "episodes": 4}


def imported(folder: Path) -> dict[str, Any]:
    """What mini-swe-agent wrote, imported and compared with its own files."""
    from swe_env.replay import ReplayBuffer

    report = json.loads(
        swe("buffer", "import", f"{folder}/mini-runs", f"{folder}/imported", "--json")
    )
    assert report["skipped"] == [], report
    records = {t.instance_id: t for t in ReplayBuffer(folder / "imported")}
    assert len(records) == report["trajectories"] == 4
    for name in ("project__fenced-1", "project__called-1"):
        record = records[name]
        source = json.loads((folder / "mini-runs" / name / f"{name}.traj.json").read_text())
        actions = [a for m in source["messages"] for a in m.get("extra", {}).get("actions", ())]
        made = [c.arguments["command"] for s in record.agent_steps for c in s.tool_calls]
        assert made == [a["command"] for a in actions]
        answers = [
            m for m in source["messages"] if m.get("extra", {}).get("raw_output") is not None
        ]
        seen = [s.observation for s in record.agent_steps if s.observation]
        assert [o.content for o in seen] == [m["content"] for m in answers]
        assert [o.exit_code for o in seen] == [0, 0, 1]
        assert [s.message for s in record.agent_steps] == [f"Next: {k}" for k in range(4)]
        assert record.finished
        assert record.patch.strip() == source["info"]["submission"].strip()
        assert "+    return a + b" in record.patch
    refused = records["project__refused-1"]
    assert [c.function_name for s in refused.agent_steps for c in s.tool_calls][:2] == [
        "bash",
        "invalid",
    ]
    assert refused.agent_steps[1].message == "I forgot the command."
    limited = records["project__limited-1"]
    assert (limited.finished, limited.truncation, limited.patch) == (False, "steps", "")
    return {"imported": len(records), "steps": sum(len(t.agent_steps) for t in records.values())}


PEERS: dict[str, tuple[Callable[[Path], dict[str, Any]], Callable[..., dict[str, Any]] | None]] = {
    "swebench": (swebench, None),
    "harbor": (harbor, None),
    "minari": (minari, None),
    "mini": (mini, imported),
    "trl": (trl, None),
    "llamafactory": (llamafactory, None),
}
"""Peer → what runs in its environment, and what is checked here afterwards."""


if __name__ == "__main__":
    main()
