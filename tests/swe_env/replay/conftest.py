import pytest

from swe_env.replay import (
    Agent,
    Metrics,
    Step,
    StepObservation,
    ToolCall,
    Trajectory,
)
from swe_env.types import Failure, TestReport


def make_trajectory(
    instance_id="task-0", attempt=0, *, resolved=False, failure="", text="look", finished=True
):
    report = TestReport(
        resolved=resolved,
        fraction=float(resolved),
        fail_to_pass={"tests/test_a.py::test_a": "passed" if resolved else "failed"},
        pass_to_pass={},
    )
    return Trajectory(
        instance_id=instance_id,
        agent=Agent(name="maker", model_name="none"),
        attempt=attempt,
        resolved=resolved,
        reward=float(resolved),
        finished=finished,
        failure=Failure(kind=failure, message="it broke") if failure else None,
        report=None if failure else report,
        patch="--- a/x\n+++ b/x\n" if resolved else "",
        steps=(
            Step(step_id=1, source="user", message="the issue"),
            Step(
                step_id=2,
                source="agent",
                message=text,
                tool_calls=(ToolCall(function_name="view", arguments={"path": "a.py"}),),
                observation=StepObservation(content="1 é\n2"),
                metrics=Metrics(
                    prompt_token_ids=(1, 2),
                    completion_token_ids=(3, 4, 5),
                    logprobs=(-1.0, -0.5, 0.0),
                ),
            ),
        ),
    )


@pytest.fixture
def trajectories():
    return [
        make_trajectory(f"task-{i % 4}", i // 4, resolved=i % 3 == 0, text=f"text {i} " * 20)
        for i in range(24)
    ]
