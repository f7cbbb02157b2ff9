"""The symmetric contrastive loss: every query against every image, each under the query's own map, and back.

Both directions come from one Q×N score matrix: rows give query → image, columns image → query. (QuARI, section 3.3; the
published program's image → query term has no negatives.)
"""

import chex
import jax
import jax.numpy as jnp


def contrastive(
  score_QN: jax.Array,
  instance_Q: jax.Array,
  temperature: jax.Array | float,
  semi_score_QM: jax.Array | None = None,
  semi_weight_QM: jax.Array | None = None,
  semi_share: float = 0.0,
  listed_QN: jax.Array | None = None,
) -> jax.Array:
  """Returns the mean loss of Q pairs (a float32 scalar, natural logarithm); query i belongs to image i.

  Args:
    score_QN: cosines, N = Q; row i holds query i against every image under query i's map.
    instance_Q: the instance of each pair. Another pair's image of the same instance is no negative: it is left out.
    temperature: what the cosines are divided by.
    semi_score_QM: cosines of each query's own semi-positives, under its map.
    semi_weight_QM: their weights, summing to 1 in a row; weight 0 leaves one out.
    semi_share: how much of a row's target goes to its semi-positives, in [0, 1).
    listed_QN: other pairs' images that are right for a query by its list; they are left out too.
  """
  chex.assert_rank([score_QN, instance_Q], [2, 1])
  chex.assert_equal_shape_prefix([score_QN, score_QN.T, instance_Q], 1)
  own_QN = jnp.eye(len(instance_Q), dtype=bool)
  same_QN = instance_Q[:, None] == instance_Q[None, :]
  left_out_QN = (same_QN if listed_QN is None else same_QN | listed_QN) & ~own_QN
  logit_QN = jnp.where(left_out_QN, -jnp.inf, score_QN.astype(jnp.float32) / temperature)
  positive_Q = jnp.diagonal(logit_QN)
  column_loss_N = jax.nn.logsumexp(logit_QN, axis=0) - positive_Q
  if semi_score_QM is None or semi_weight_QM is None:
    row_loss_Q = jax.nn.logsumexp(logit_QN, axis=1) - positive_Q
  else:
    chex.assert_equal_shape([semi_score_QM, semi_weight_QM])
    semi_logit_QM = semi_score_QM.astype(jnp.float32) / temperature
    counted_QM = jnp.where(semi_weight_QM > 0, semi_logit_QM, -jnp.inf)
    total_Q = jax.nn.logsumexp(jnp.concatenate([logit_QN, counted_QM], axis=1), axis=1)
    share_Q = semi_share * jnp.any(semi_weight_QM > 0, axis=1)
    semi_Q = jnp.sum(semi_weight_QM * semi_logit_QM, axis=1)
    row_loss_Q = total_Q - (1 - share_Q) * positive_Q - share_Q * semi_Q
  return 0.5 * (row_loss_Q.mean() + column_loss_N.mean())


def add_noise(key: jax.Array, feature_D: jax.Array, kind: str, scale: float) -> jax.Array:
  """Returns one unit feature (D) with noise, unit again.

  `relative`: normalise(x + scale · u · n/√D), u uniform in [0, 1], n normal, so that noise never drowns the feature.
  `published`: normalise(x + scale · n), which at scale 1 has √D times the feature's length. `none`: x.
  """
  width = feature_D.shape[-1]
  if kind == "none":
    return feature_D
  amount_key, direction_key = jax.random.split(key)
  noise_D = scale * jax.random.normal(direction_key, (width,))
  if kind == "relative":
    noise_D *= jax.random.uniform(amount_key) * width**-0.5
  elif kind != "published":
    raise ValueError(f"noise is {kind!r}; use one of none, relative, published")
  noisy_D = feature_D + noise_D
  return noisy_D / jnp.linalg.norm(noisy_D)
