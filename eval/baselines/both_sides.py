"""One static affine map for queries and one for the gallery: what whitening, LDA and a trained linear layer come to.

Offline O(N·D·E) for N items mapped from width D to E, once; online one D×E product a query and plain search of width E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import qat_jax
from eval.baselines.types import Gallery, Search
from eval.ranking import ranked
from qat_jax.adaptation import HIGHEST, normalise
from qat_jax.types import Ranking

CHUNK_ROWS = 65536


class Affine(NamedTuple):
  """normalise((x − mean) · map + bias), x a unit row; all float32."""

  mean_D: Any
  map_DE: Any
  bias_E: Any


def index_with(query: Affine, gallery: Affine) -> Callable[[Gallery], Search]:
  """Returns the index of a baseline that maps both sides and ranks by cosine."""

  def index(items: Gallery) -> Search:
    mapped_NE = jnp.concatenate(
      [apply(gallery, jnp.asarray(items[start : start + CHUNK_ROWS])) for start in range(0, len(items), CHUNK_ROWS)]
    )

    def search(query_QD: np.ndarray, k: int) -> Ranking:
      return ranked(qat_jax.plain(apply(query, jnp.asarray(query_QD))), mapped_NE, k)

    return search

  return index


@jax.jit
def apply(affine: Affine, x_ND: jax.Array) -> jax.Array:
  """Returns the mapped rows (NE, unit float32) of rows of any float type (ND)."""
  centred_ND = normalise(x_ND) - affine.mean_D
  return normalise(jnp.matmul(centred_ND, affine.map_DE, precision=HIGHEST) + affine.bias_E)


def affine(mean_D: np.ndarray, map_DE: np.ndarray) -> Affine:
  """Returns the map without a bias, from arrays of any float type."""
  width = map_DE.shape[1]
  return Affine(jnp.asarray(mean_D, jnp.float32), jnp.asarray(map_DE, jnp.float32), jnp.zeros(width, jnp.float32))
