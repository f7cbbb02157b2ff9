"""Levelled items: one number an item against hubs, which many queries find though few mean them.

A hub is near everything. Its level, what training queries score with it at best, is taken off its scores:
nearest-neighbour normalisation, and its relatives. The number is one more coordinate of the item, so search stays an
inner product, and any index serves it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from qat_jax.adaptation import HIGHEST, normalise
from qat_jax.models.memory import in_blocks, with_wider_query
from qat_jax.types import Adaptation

GREATEST = 0.999  # of what is taken off a score


def level_of(folded_ME: jax.Array, item_NE: jax.Array, nearest: int, sharpness: float) -> jax.Array:
  """Returns the level of unit items (N, float32): how M training queries, folded, score with them at best.

  The mean of their `nearest` best scores s; or, where that is 0, the soft maximum log(mean exp(sharpness · s)) /
  sharpness over all of them, as the inverted softmax has it.
  """
  folded_ME = jnp.asarray(folded_ME, jnp.float32)

  def block(item_BE: jax.Array) -> jax.Array:
    score_BM = jnp.matmul(item_BE, folded_ME.T, precision=HIGHEST)
    if nearest:
      return jax.lax.top_k(score_BM, min(nearest, len(folded_ME)))[0].mean(axis=1)
    return jax.nn.logsumexp(sharpness * score_BM, axis=1, b=1 / len(folded_ME)) / sharpness

  return in_blocks(block, item_NE)


class Levelled(nn.Module):
  """Another form, weight · level taken off every score: items [z, −b, √(1 − b²)] / √2, queries [q', 1, 0] / √2.

  b = weight · (level − centre), no more than ±1. Where T = I the score is (q'·z − b) / 2. The `queries` training
  queries, folded, `items` wide as the other form's items are (half precision), and the two numbers are constants.
  """

  width: int
  head: nn.Module
  queries: int
  items: int
  nearest: int
  sharpness: float = 0.0

  def setup(self) -> None:
    self.folded = self.variable("constants", "folded", jnp.zeros, (self.queries, self.items), jnp.float16)
    self.weight = self.variable("constants", "weight", jnp.ones, ())
    self.centre = self.variable("constants", "centre", jnp.zeros, ())

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD)."""
    adaptation = self.head(query_QD, train)
    one_Q1 = jnp.ones((query_QD.shape[0], 1), jnp.float32)
    return with_wider_query(adaptation, normalise(jnp.concatenate([adaptation.query, one_Q1, 0 * one_Q1], axis=1)))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (float32) that the adaptation is for: the other form's, two dimensions wider."""
    item_NE = self.head.prepare(gallery_ND)
    level_N = level_of(self.folded.value, item_NE, self.nearest, self.sharpness)
    off_N = jnp.clip(self.weight.value * (level_N - self.centre.value), -GREATEST, GREATEST)
    rest_N = jnp.sqrt(1 - jnp.square(off_N))
    return normalise(jnp.concatenate([item_NE, -off_N[:, None], rest_N[:, None]], axis=1))
