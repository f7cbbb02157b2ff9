"""α query expansion: the query becomes the weighted mean of itself and its nearest gallery items.

Online two searches of the gallery a query; nothing is fitted but two numbers, and nothing is kept.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qat_jax
from eval.ranking import Method, Search
from qat_jax.adaptation import normalise
from qat_jax.types import Ranking
from qat_jax.validation import Validator

NEAREST = (1, 2, 5, 10)
ALPHAS = (0.0, 1.0, 3.0, 6.0)


def fit(validator: Validator) -> Method:
  """Returns query expansion with the count and α that do best on validation."""
  pairs = itertools.product(NEAREST, ALPHAS)
  nearest, alpha = max(pairs, key=lambda pair: validator.of_search(search_in(validator.gallery_ND, *pair)))
  return Method(lambda gallery: search_in(gallery, nearest, alpha), f"nearest {nearest}, α {alpha}")


def search_in(gallery: Any, nearest: int, alpha: float) -> Search:
  """Returns the search of a gallery (ND, slices to rows) with expanded queries."""
  gallery_ND = normalise(jnp.asarray(gallery[:]))

  def search(query_QD: np.ndarray, k: int) -> Ranking:
    plain = qat_jax.plain(jnp.asarray(query_QD, jnp.float32))
    first = qat_jax.rank(plain, gallery_ND, min(nearest, len(gallery_ND)))
    moved_QD = expanded(plain.query, gallery_ND, jnp.asarray(first.ids), jnp.asarray(first.scores), alpha)
    return qat_jax.rank(qat_jax.plain(moved_QD), gallery_ND, k)

  return search


@jax.jit
def expanded(
  query_QD: jax.Array, gallery_ND: jax.Array, ids_QK: jax.Array, cosine_QK: jax.Array, alpha: float
) -> jax.Array:
  """Returns unit queries normalise(q + Σ max(cosine, 0)^α d) over each query's nearest items (QD)."""
  weight_QK = jnp.where(cosine_QK > 0, jnp.maximum(cosine_QK, 1e-12) ** alpha, 0.0)
  return normalise(query_QD + jnp.einsum("QK,QKD->QD", weight_QK, gallery_ND[ids_QK]))
