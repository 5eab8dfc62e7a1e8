"""Relatives of EntroPO that have a name of their own: SPL, H-DPO, and length-normalised λ.

SPL and H-DPO are the same function of the log-probability sums as Eq. 7, from papers on single
answers, with other letters; the names say in a configuration which of them was meant.
"""

from __future__ import annotations

from torch import Tensor

from learners.losses.base import LossOutput, check_lengths
from learners.losses.dpo import check_pairs, entropo_dpo, pair_loss
from learners.losses.kto import check_rows, row_loss
from swe_env.errors import ConfigError


def spl(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    gamma: float,
    zeta: float,
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
) -> LossOutput:
    """Soft Preference Learning's DPO (arXiv 2511.08594, Proposition A.2).

    It maximises ``E[r] + α H(π) - β H(π, π_ref)``, the entropy and the cross-entropy of the KL
    weighted apart, and comes to ``-log sigmoid(α (S_w - S_l) - β (S_ref,w - S_ref,l))``: Eq. 7
    with ``zeta = α`` and ``gamma = β``. Smoothing and ties are ours. Arguments, result and errors
    are `entropo_dpo`'s.
    """
    return entropo_dpo(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        gamma=gamma,
        zeta=zeta,
        label_smoothing=label_smoothing,
        tie=tie,
    )


def h_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    gamma: float,
    zeta: float,
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
) -> LossOutput:
    """H-DPO (arXiv 2411.07595) as its authors use it: λ below zero, which sharpens the policy.

    ``-log sigmoid(α β (S_w - S_l) - β (S_ref,w - S_ref,l))`` with α below 1: Eq. 7 with
    ``zeta = α β`` and ``gamma = β``. Arguments, result and errors are `entropo_dpo`'s, and:

    Raises:
        ConfigError: zeta is above gamma, which is the opposite (and TrainConfig's default).
    """
    if zeta > gamma:
        raise ConfigError(
            f"h-dpo sharpens, so its zeta must not be above gamma, and {zeta:g} is above "
            f"{gamma:g}: set zeta = alpha gamma with alpha below 1, or use spl or entropo-dpo."
        )
    return spl(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        gamma=gamma,
        zeta=zeta,
        label_smoothing=label_smoothing,
        tie=tie,
    )


def entropo_dpo_normalized(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    chosen_num_tokens: Tensor,
    rejected_num_tokens: Tensor,
    gamma: float,
    zeta: float,
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
) -> LossOutput:
    """EntroPO-DPO with the entropy term per token. Not the paper's: it sums.

    Eq. 7's logit is DPO's plus ``λ (S_w - S_l)``, which at step 0 grows with the difference in
    length. Here it is DPO's plus ``λ n (S_w / n_w - S_l / n_l)`` with ``n = (n_w + n_l) / 2``: at
    equal lengths Eq. 7 exactly, and at equal log-probability a token no offset at step 0 whatever
    the lengths. n belongs to the pair, so no single reward stands behind the loss and its optimum
    has no closed form.

    Args:
        policy_chosen_logps: S of the chosen trajectories, shape (batch,), float32 or float64.
        policy_rejected_logps: S of the rejected ones, (batch,).
        ref_chosen_logps: S under the reference policy, (batch,).
        ref_rejected_logps: the same for the rejected ones, (batch,).
        chosen_num_tokens: n_w, how many tokens each sum has, (batch,), integers.
        rejected_num_tokens: n_l, the same for the rejected ones, (batch,).
        gamma: Weight of the KL to the reference, above 0.
        zeta: gamma + λ, above 0.
        label_smoothing: ε in [0, 0.5].
        tie: bool (batch,): target 1/2 where True.

    Returns:
        The mean loss, and the metrics of `entropo_dpo`.

    Raises:
        ConfigError: an argument has the wrong shape, type or range.
    """
    tie = check_pairs(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
        gamma=gamma, zeta=zeta, label_smoothing=label_smoothing, tie=tie,
    )  # fmt: skip
    check_lengths("chosen_num_tokens", chosen_num_tokens, policy_chosen_logps)
    check_lengths("rejected_num_tokens", rejected_num_tokens, policy_chosen_logps)
    n_w, n_l = (n.to(policy_chosen_logps.dtype) for n in (chosen_num_tokens, rejected_num_tokens))
    # A fully masked sample has length and sum 0, and so adds nothing.
    per_token_w = policy_chosen_logps / n_w.clamp(min=1)
    per_token_l = policy_rejected_logps / n_l.clamp(min=1)
    lam, mean = zeta - gamma, (n_w + n_l) / 2
    chosen = gamma * (policy_chosen_logps - ref_chosen_logps.detach()) + lam * mean * per_token_w
    rejected = (
        gamma * (policy_rejected_logps - ref_rejected_logps.detach()) + lam * mean * per_token_l
    )
    # Differences first, as in Eq. 7: n (S_w / n_w - S_l / n_l) is S_w - S_l and what the lengths
    # add, (n_l - n_w) (S_w / n_w + S_l / n_l) / 2, and nothing large is left to cancel.
    margin = (
        zeta * (policy_chosen_logps - policy_rejected_logps)
        - gamma * (ref_chosen_logps - ref_rejected_logps).detach()
        + lam * (n_l - n_w) / 2 * (per_token_w + per_token_l)
    )
    return pair_loss(
        margin, chosen, rejected, policy_chosen_logps, policy_rejected_logps,
        label_smoothing=label_smoothing, tie=tie,
    )  # fmt: skip


def entropo_kto_normalized(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    num_tokens: Tensor,
    mean_tokens: Tensor,
    gamma: float,
    zeta: float,
    z0: Tensor | float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """EntroPO-KTO with the entropy term per token. Not the paper's: it sums.

    The reward ``zeta r = γ (S - S_ref) + λ S`` of Eqs. 10-13 becomes
    ``γ (S - S_ref) + λ n S / n_i`` with n the mean length of the task's trajectories: at equal
    lengths Eqs. 10-13 exactly, and at equal log-probability a token all of a task start from one
    reward whatever their lengths.

    Args:
        policy_logps: S of each trajectory, shape (batch,), float32 or float64.
        ref_logps: S under the reference policy, (batch,).
        desirable: bool (batch,).
        num_tokens: n_i, how many tokens each sum has, (batch,), integers.
        mean_tokens: n, the mean of n_i over the task's trajectories, (batch,).
        gamma: Weight of the KL to the reference, above 0.
        zeta: gamma + λ, above 0.
        z0: Scalar or (batch,), the expectation of `normalized_reward`; no gradient flows into it.
        desirable_weight: w+, 0 or above.
        undesirable_weight: w-, 0 or above.

    Returns:
        The mean loss, and the metrics of `entropo_kto`.

    Raises:
        ConfigError: an argument has the wrong shape, type or range.
    """
    check_rows(
        policy_logps, ref_logps, desirable, gamma, zeta, desirable_weight, undesirable_weight
    )
    check_lengths("num_tokens", num_tokens, policy_logps)
    if mean_tokens.shape != policy_logps.shape:
        raise ConfigError(
            f"mean_tokens has shape {tuple(mean_tokens.shape)}: expected "
            f"{tuple(policy_logps.shape)}."
        )
    reward = normalized_reward(
        policy_logps, ref_logps.detach(), num_tokens, mean_tokens, gamma=gamma, zeta=zeta
    )
    return row_loss(reward, policy_logps, desirable, zeta, z0, desirable_weight, undesirable_weight)


def normalized_reward(
    policy_logps: Tensor,
    ref_logps: Tensor,
    num_tokens: Tensor,
    mean_tokens: Tensor,
    *,
    gamma: float,
    zeta: float,
) -> Tensor:
    """R of `entropo_kto_normalized`, (batch,): ``(γ (S - S_ref) + λ n S / n_i) / ζ``.

    Arguments are those of `entropo_kto_normalized`. A fully masked trajectory has reward 0 but for
    its reference.
    """
    own = num_tokens.to(policy_logps.dtype)
    longer = (mean_tokens.to(policy_logps.dtype) - own) / own.clamp(min=1)
    paper = policy_logps - (gamma / zeta) * ref_logps
    return paper + (zeta - gamma) / zeta * longer * policy_logps
