"""What the families' own chat templates render, as a digest that those written anew are held to.

pip install trl==1.16.0 && python -m tests.learners.own_templates \\
    SITE_PACKAGES/trl/chat_templates tests/data/chat_templates.json

TRL carries the templates of the families beside its own ones for training; that of SmolLM2 comes
with its weights (`agents.policies.hub`).
"""

import hashlib
import itertools
import json
import sys
from pathlib import Path

FILES = {
    "Qwen2.5": "qwen2_5", "Qwen3-2507": "qwen3_instruct_2507", "Qwen3": "qwen3",
    "Llama 3": "llama3", "Llama 3.1": "llama3_1", "Gemma 3": "gemma3", "GLM-4.5": "glm4moe",
}  # fmt: skip
SYSTEM = ("", "You mend programs.")
SAID = ("", " <think>why</think>rest", "\n\n", " x ")


def conversations():
    """Up to three turns with and without a system message, ends that templates strip, thoughts."""
    for turns, system, end, answered in itertools.product(range(4), SYSTEM, SAID, (True, False)):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": f"issue{end}"})
        for turn in range(turns):
            messages.append({"role": "assistant", "content": f"reply {turn}{end}"})
            messages.append({"role": "user", "content": f"seen {turn}{end}"})
        yield messages if answered or not turns else messages[:-1]


def digest(tokenizer):
    """Of all renderings, each with and without the generation prompt."""
    found = hashlib.sha256()
    for messages, generation in itertools.product(conversations(), (False, True)):
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation
        )
        found.update(text.encode() + b"\0")
    return found.hexdigest()


def main(templates, path):
    """Writes the digests into the file."""
    from agents.policies import hub
    from tests.learners.data.test_families import tokenizer_of

    record = json.loads(path.read_text())
    for name, family in record["families"].items():
        if name in FILES:
            own = (templates / f"{FILES[name]}.jinja").read_text()
        else:
            own = hub.load_tokenizer("smollm2").chat_template
        family["sha256_of_own"] = digest(tokenizer_of(name, own))
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
