import pytest
import torch

from learners.losses.z0 import estimator, leave_one_out, mismatched
from swe_env.errors import ConfigError

REWARDS = torch.tensor([-1.0, -3.0, -8.0, -20.0, -5.0], dtype=torch.float64)
GROUPS = [0, 0, 0, 1, 2]


def test_task_is_the_leave_one_out_mean_of_the_task():
    z0 = leave_one_out(REWARDS, torch.tensor(GROUPS))
    assert z0[:3].tolist() == pytest.approx([-5.5, -4.5, -2.0])


def test_a_task_of_one_takes_the_mean_of_the_others():
    z0 = leave_one_out(REWARDS, torch.tensor(GROUPS))
    assert z0[3].item() == pytest.approx((-1 - 3 - 8 - 5) / 4)
    assert leave_one_out(torch.tensor([-7.0]), torch.tensor([0])).tolist() == [-7.0]


@pytest.mark.parametrize(
    ("name", "expected"), [("task", [-5.5, -17 / 4]), ("batch", [-10.5] * 2), ("zero", [0.0] * 2),
                           ("ema", [-7.4] * 2)]
)  # fmt: skip
def test_estimators_at_step_zero(name, expected):
    assert estimator(name, REWARDS, GROUPS).estimate([0, 3]).tolist() == pytest.approx(expected)


def test_estimators_follow_the_latest_rewards_and_survive_a_checkpoint():
    for name in ("task", "batch", "ema"):
        z0 = estimator(name, REWARDS, GROUPS)
        before = z0.estimate([0]).item()
        z0.update([0, 1], torch.tensor([-4.0, -6.0]))
        assert z0.estimate([0]).item() != before
        again = estimator(name, torch.zeros(5), GROUPS)
        again.load_state_dict(z0.state_dict())
        assert again.estimate([0, 4]).tolist() == z0.estimate([0, 4]).tolist()


def test_a_smaller_last_batch_moves_the_moving_mean_by_as_much_less():
    def moved(rows, batch_size):
        z0 = estimator("ema", torch.zeros(20), [0] * 20, batch_size)
        z0.update(range(rows), torch.ones(rows))
        return z0.estimate([0]).item()

    assert moved(16, 16) == moved(16, None) == 1 - 0.95  # a full batch to the last bit
    assert moved(1, 16) == pytest.approx(1 - 0.95 ** (1 / 16))
    assert moved(4, 16) == pytest.approx(1 - 0.95 ** (4 / 16))
    # Where all rows make one batch it is full, whatever the setting.
    assert moved(20, 64) == 1 - 0.95


def test_mismatched_is_clamped_as_ktos():
    policy, ref = torch.tensor([-5.0, -6.0], requires_grad=True), torch.tensor([-4.0, -5.0])
    assert mismatched(policy, ref).item() == 0
    assert not mismatched(policy, ref).requires_grad
    assert mismatched(ref, policy.detach()).item() == 1
    assert mismatched(policy, ref, ref_weight=2.0).item() == 3.5


def test_an_unknown_estimator_is_one_sentence():
    with pytest.raises(ConfigError, match="no z0 estimator 'median'"):
        estimator("median", REWARDS, GROUPS)
