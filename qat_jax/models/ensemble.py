"""The average of a few heads of one form, trained from different seeds: one forward pass, one adaptation."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from qat_jax.adaptation import normalise
from qat_jax.models.closed_forms import Untouched
from qat_jax.types import Adaptation


class Ensemble(Untouched):
  """q' = normalise(Σ q'_k) and T = mean of T_k, over the members; the gallery is not touched.

  T's factors stand beside each other: K members of rank R search as one map of rank K · R, members without factors as
  one head.
  """

  width: int
  members: Sequence[nn.Module]

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD)."""
    all_K = [member(query_QD, train) for member in self.members]
    return Adaptation(
      query=normalise(sum(one.query for one in all_K)),
      gate=sum(one.gate for one in all_K) / len(all_K),
      left=jnp.concatenate([one.left for one in all_K], axis=2) / len(all_K),
      right=jnp.concatenate([one.right for one in all_K], axis=2),
    )
