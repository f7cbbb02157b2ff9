"""α query expansion: the query becomes the weighted mean of itself and its nearest gallery items.

Online two searches of the gallery a query; nothing is fitted but two numbers, and nothing is kept.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import qat_jax
from eval.baselines.types import Baseline, Gallery, Search, Train
from eval.ranking import ranked
from qat_jax.adaptation import normalise
from qat_jax.types import Ranking
from qat_jax.validation import Validator

NEAREST = (1, 2, 5, 10)
ALPHAS = (0.0, 1.0, 3.0, 6.0)


def fit(train: Train, validator: Validator) -> Baseline:
  """Returns query expansion with the count and α that do best on validation; training features play no part."""

  def index_of(nearest: int, alpha: float):
    def index(gallery: Gallery) -> Search:
      gallery_ND = normalise(jnp.asarray(gallery[:]))

      def search(query_QD: np.ndarray, k: int) -> Ranking:
        plain = qat_jax.plain(jnp.asarray(query_QD, jnp.float32))
        found = qat_jax.rank(plain, gallery_ND, min(nearest, len(gallery_ND)))
        moved_QD = expanded(plain.query, gallery_ND, jnp.asarray(found.ids), jnp.asarray(found.scores), alpha)
        return ranked(qat_jax.plain(moved_QD), gallery_ND, k)

      return search

    return index

  def value(pair: tuple[int, float]) -> float:
    return validator.of_search(index_of(*pair)(validator.gallery_ND))

  nearest, alpha = max(itertools.product(NEAREST, ALPHAS), key=value)
  return Baseline(index_of(nearest, alpha), 0, 0.0, f"nearest {nearest}, α {alpha}")


@jax.jit
def expanded(
  query_QD: jax.Array, gallery_ND: jax.Array, ids_QK: jax.Array, cosine_QK: jax.Array, alpha: float
) -> jax.Array:
  """Returns unit queries normalise(q + Σ max(cosine, 0)^α d) over each query's nearest items (QD)."""
  weight_QK = jnp.where(cosine_QK > 0, jnp.maximum(cosine_QK, 1e-12) ** alpha, 0.0)
  return normalise(query_QD + jnp.einsum("QK,QKD->QD", weight_QK, gallery_ND[ids_QK]))
