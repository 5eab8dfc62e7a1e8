import dataclasses

import pytest
from unidiff import PatchSet

from agents.parsing import get_format
from agents.policies import make_policy
from agents.policies.oracle import ROUTES
from agents.rollouts import run_episode, run_rollouts
from swe_env.env import SWEEnv
from swe_env.errors import ConfigError
from tests.conftest import BAD, GOOD, unified

NEW = "--- /dev/null\n+++ b/extra.py\n@@ -0,0 +1,2 @@\n+def extra():\n+    return 1\n"
GONE = "--- a/tests/test_shop.py\n+++ /dev/null\n"
TWICE = GOOD.replace("name.strip()", "name.strip(' ')").replace("amount = sum", "amount = 0 + sum")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def lines_of(patch):
    return sorted(
        (file.path, line.line_type, line.value)
        for file in PatchSet(patch)
        for hunk in file
        for line in hunk
        if line.line_type in "+-"
    )


@pytest.fixture
def episode(shop_task):
    def run(patch, seed=0, text_format="r2e", tools="default", **options):
        task = dataclasses.replace(shop_task, patch=patch)
        env = SWEEnv([task], sandbox="process", tools=tools)
        try:
            policy = make_policy("oracle", text_format=text_format, **options)
            return run_episode(env, policy, instance_id=task.instance_id, seed=seed)
        finally:
            env.close()

    return run


def calls(trajectory):
    return [step.tool_calls[0].function_name for step in trajectory.agent_steps]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("text_format", ["r2e", "json"])
def test_every_route_resolves_with_the_gold_patch(episode, shop_task, route, text_format):
    trajectory = episode(shop_task.patch, routes=[route], text_format=text_format)
    assert trajectory.resolved
    assert trajectory.finished
    assert lines_of(trajectory.patch) == lines_of(shop_task.patch)
    assert all(step.observation.exit_code == 0 for step in trajectory.agent_steps)
    assert calls(trajectory)[-1] == "submit"


@pytest.mark.parametrize("route", ROUTES)
def test_it_plays_r2es_tools_by_their_names(episode, shop_task, route):
    patch = unified("shop.py", BAD, TWICE) + NEW
    trajectory = episode(patch, routes=[route], text_format="r2e-gym", tools="r2e", tests=1.0)
    assert trajectory.finished
    assert lines_of(trajectory.patch) == lines_of(patch)
    assert all(step.observation.exit_code == 0 for step in trajectory.agent_steps)
    assert (
        {"file_editor", "finish"} <= set(calls(trajectory)) <= {"file_editor", "finish", "search"}
    )


def test_without_an_edit_tool_the_patch_goes_through_the_shell(episode, shop_task):
    trajectory = episode(shop_task.patch, tools=["bash", "submit"])
    assert trajectory.resolved
    assert calls(trajectory) == ["bash", "submit"]


def test_a_patch_that_needs_a_shell_says_so(episode, shop_task):
    patch = shop_task.patch + "diff --git a/a b/b\nrename from a\nrename to b\n"
    trajectory = episode(patch, tools=["view", "edit", "submit"])
    assert "no shell is offered" in trajectory.provenance["policy_error"]


@pytest.mark.parametrize(
    ("policy", "tools"),
    [("oracle", ["view", "submit"]), ("oracle", ["edit"]), ("random", ["bash"])],
)
def test_tools_that_it_cannot_play_are_refused_before_anything_is_played(
    shop_task, tmp_path, policy, tools
):
    with pytest.raises(ConfigError, match=r"tools offered \(.*\): offer"):
        run_rollouts(
            make_policy(policy), [shop_task], out=tmp_path / "job",
            env_kwargs={"sandbox": "process", "tools": tools},
        )  # fmt: skip


@pytest.fixture(scope="module")
def six(shop_task):
    """Episodes of six seeds."""
    env = SWEEnv([shop_task], sandbox="process", grade_cache=True)
    policy = make_policy("oracle")
    yield [run_episode(env, policy, instance_id="shop-1", seed=seed) for seed in range(6)]
    env.close()


def test_seeds_choose_different_routes_and_the_same_one_again(six, episode, shop_task):
    shapes = {
        tuple((c, *s.tool_calls[0].arguments) for c, s in zip(calls(t), t.agent_steps, strict=True))
        for t in six
    }
    assert len(shapes) >= 3
    assert episode(shop_task.patch, seed=3).steps == six[3].steps


def test_messages_are_replies_in_the_format_that_quote_only_what_was_seen(six):
    for trajectory in six:
        assert trajectory.resolved
        assert trajectory.steps[0].source == "system"
        seen = trajectory.steps[1].message
        for step in trajectory.agent_steps:
            found = get_format("r2e").parse(step.message)
            assert found["tool"] == step.tool_calls[0].function_name
            for quoted in step.message.partition("<function=")[0].split("`")[1::2]:
                assert quoted in seen
            if found["tool"] == "edit":
                assert all(x.strip() in seen for x in found["arguments"]["old_str"].split("\n"))
            seen += step.observation.content


@pytest.mark.parametrize("seed", range(2))
def test_several_places_and_a_new_file(episode, seed):
    patch = unified("shop.py", BAD, TWICE) + NEW
    trajectory = episode(patch, seed=seed)
    assert lines_of(trajectory.patch) == lines_of(patch)
    assert calls(trajectory).count("edit") == 3  # two adjacent lines, one apart, the new file


def test_a_patch_that_edits_cannot_make_goes_through_the_shell(episode, shop_folder, shop_task):
    text = (shop_folder / "tests" / "test_shop.py").read_text()
    count = text.count("\n")
    removed = "".join(f"-{line}\n" for line in text.splitlines())
    patch = shop_task.patch + f"{GONE}@@ -1,{count} +0,0 @@\n{removed}"
    trajectory = episode(patch)
    assert "bash" in calls(trajectory)
    assert lines_of(trajectory.patch) == lines_of(patch)


def test_a_patch_that_does_not_fit_is_the_policys_failure(episode):
    trajectory = episode(unified("shop.py", "x = 1\n", "x = 2\n"))
    assert trajectory.truncation == "policy"
    assert "could not be applied" in trajectory.provenance["policy_error"]


def test_random_and_scripted_policies_in_the_real_environment(shop_task, tmp_path):
    submit = [{"tool": "submit", "arguments": {}}]
    for policy in (make_policy("random", submit=0.3), make_policy("scripted", actions=submit)):
        report = run_rollouts(
            policy,
            [shop_task],
            attempts=2,
            workers=2,
            out=tmp_path / policy.agent.name,
            env_kwargs={"sandbox": "process", "max_episode_steps": 8},
        )
        assert report.failures == {}
        assert [r.resolved for r in report.results] == [False, False]
        assert all(r.finished or r.truncation in ("steps", "stuck") for r in report.results)
