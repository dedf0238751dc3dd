"""Group advantages on the host: who did better than the group?

Algorithm 1 of the paper: all G rollouts of a problem form one group, across the
K prompts, and A_i = (r_i − mean) / (std + ε) with the population standard
deviation.  A group whose rewards are all equal teaches nothing; the paper leaves
open what happens to it, and here it is left out of the policy term and of that
term's denominator.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

EPSILON = 1e-6


def group_advantages(
    rewards: Float[np.ndarray, "N"],
    groups: Int[np.ndarray, "N"],
    normalize_std: bool = True,
    normalize_batch: bool = False,
    leave_one_out: bool = False,
) -> tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """Advantages (float32) and whether each rollout's group has any variance.

    Args:
      rewards: reward of each rollout.
      groups: id of each rollout's group: its problem (the default baseline), its
        (problem, prompt) pair for the per-prompt ablation, or one for all.
      normalize_std: divide by the group's population standard deviation.
      normalize_batch: then divide by the standard deviation over all rollouts
        of groups with variance.
      leave_one_out: compare with the mean of the group's other rollouts, which does
        not depend on the rollout's own reward (Kool et al. 2019; RLOO, arXiv
        2402.14740).  That is G / (G − 1) times the distance to the group's mean.

    A group without variance is recognised by max − min, not by a standard
    deviation that rounding keeps above zero.
    """
    rewards = np.asarray(rewards, np.float64)
    advantages = np.zeros_like(rewards)
    valid = np.zeros(rewards.shape, bool)
    for group in np.unique(groups):
        members = groups == group
        own = rewards[members]
        if own.max() == own.min():
            continue
        centred = own - own.mean()
        if leave_one_out:
            centred *= len(own) / (len(own) - 1)
        advantages[members] = centred / (own.std() + EPSILON) if normalize_std else centred
        valid[members] = True
    if normalize_batch and valid.any():
        advantages /= advantages[valid].std() + EPSILON
    return advantages.astype(np.float32), valid
