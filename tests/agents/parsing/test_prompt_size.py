from agents.parsing import get_format
from swe_env.tools import toolset


def test_the_prompt_for_the_six_tools_is_short():
    schemas = toolset("default").schemas
    for name in ("r2e", "json", "bash"):
        prompt = get_format(name).system_prompt(schemas)
        # SmolLM2 needs about one token for 4 characters of such text; 250 tokens are the aim.
        assert len(prompt) < 1000, prompt
        assert name == "bash" or all(t["function"]["name"] in prompt for t in schemas)
