"""The algebra of an adaptation: what one query's map does to scores.

A query's map is  T = diag(gate) + left @ rightᵀ.  Nothing here forms T: every function costs O(D·R) a query and item,
or less.
"""

import chex
import jax
import jax.numpy as jnp

from qat_jax.types import Adaptation

HIGHEST = jax.lax.Precision.HIGHEST  # GPUs and TPUs would otherwise round float32 products to tf32 or bf16


def plain(query_QD: jax.Array, space: str = "frozen") -> Adaptation:
  """Returns the adaptation that changes nothing: q' = normalise(q), T = I."""
  chex.assert_rank(query_QD, 2)
  empty_QDR = jnp.zeros((*query_QD.shape, 0), jnp.float32)
  return Adaptation(normalise(query_QD), jnp.ones((query_QD.shape[0], 1), jnp.float32), empty_QDR, empty_QDR, space)


def normalise(x: jax.Array) -> jax.Array:
  """Returns x (…D) scaled to unit length, in float32. A zero vector stays zero, and its gradient finite."""
  x = jnp.asarray(x, jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def fold(adaptation: Adaptation) -> jax.Array:
  """Returns vectors (QD) whose inner product with a gallery item is its adapted numerator.

  q'·(T z) = (Tᵀ q')·z, so one ordinary inner-product index serves adapted queries. The length of T z is not in it;
  `qat_jax.score` has it.
  """
  chex.assert_rank([adaptation.query, adaptation.gate, adaptation.left, adaptation.right], [2, 2, 3, 3])
  low_QR = jnp.einsum("QD,QDR->QR", adaptation.query, adaptation.left, precision=HIGHEST)
  return adaptation.gate * adaptation.query + jnp.einsum("QR,QDR->QD", low_QR, adaptation.right, precision=HIGHEST)
