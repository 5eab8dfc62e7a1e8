"""Relatives of EntroPO-DPO that have a name of their own: SPL, H-DPO, and length-normalised λ.

SPL and H-DPO are the same function of the log-probability sums as Eq. 7, from papers on single
answers, with other letters; the names say in a configuration which of them was meant.
"""

from __future__ import annotations

from torch import Tensor

from learners.losses.base import LossOutput, check_lengths
from learners.losses.dpo import check_pairs, entropo_dpo, pair_loss
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
