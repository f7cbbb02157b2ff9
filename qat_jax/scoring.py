"""Adaptation × gallery → scores and rankings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, fold
from qat_jax.types import Adaptation, Ranking

TINY = 1e-12
CHUNK_ROWS = 16384


@jax.jit
def score(adaptation: Adaptation, gallery_ND: jax.Array) -> jax.Array:
  """Returns cosine(q', T z) for every query and every unit gallery item (QN, float32).

  By the factors, never by T: |T z|² = (g∘g)·(z∘z) + 2 (Lᵀ(g∘z))·(Rᵀz) + |L Rᵀz|², O(D·R) a query and item.
  """
  gate, left, right = adaptation.gate, adaptation.left, adaptation.right
  gallery_ND = gallery_ND.astype(jnp.float32)
  numerator_QN = jnp.matmul(fold(adaptation), gallery_ND.T, precision=HIGHEST)
  if gate.shape[1] == 1:
    square_QN = jnp.square(gate) * jnp.sum(jnp.square(gallery_ND), axis=1)
  else:
    square_QN = jnp.matmul(jnp.square(gate), jnp.square(gallery_ND).T, precision=HIGHEST)
  if left.shape[2]:
    along_right_QNR = jnp.einsum("ND,QDR->QNR", gallery_ND, right, precision=HIGHEST)
    along_left_QNR = jnp.einsum("ND,QDR->QNR", gallery_ND, gate[:, :, None] * left, precision=HIGHEST)
    gram_QRS = jnp.einsum("QDR,QDS->QRS", left, left, precision=HIGHEST)
    mapped_QNR = jnp.einsum("QNR,QRS->QNS", along_right_QNR, gram_QRS, precision=HIGHEST)
    square_QN += jnp.sum((2 * along_left_QNR + mapped_QNR) * along_right_QNR, axis=-1)
  return numerator_QN * jax.lax.rsqrt(jnp.maximum(square_QN, TINY))


def rank(adaptation: Adaptation, gallery: Any, k: int = 100) -> Ranking:
  """Returns the exact top k of the whole gallery for each query; `gallery` is an array (ND) or a FeatureStore."""
  check(adaptation, gallery, k)
  queries = len(adaptation)
  ids_QK, scores_QK = np.empty((queries, 0), np.int32), np.empty((queries, 0), np.float32)
  for start in range(0, len(gallery), CHUNK_ROWS):
    chunk_ND = jnp.asarray(gallery[start : start + CHUNK_ROWS])
    score_QN = np.concatenate([np.asarray(score(adaptation[i : i + 8], chunk_ND)) for i in range(0, queries, 8)])
    id_QN = np.broadcast_to(np.arange(start, start + score_QN.shape[1], dtype=np.int32), score_QN.shape)
    ids_QK, scores_QK = best(np.concatenate([ids_QK, id_QN], 1), np.concatenate([scores_QK, score_QN], 1), k)
  return Ranking(ids_QK, scores_QK)


def rerank(adaptation: Adaptation, gallery: Any, shortlist: Ranking | np.ndarray, k: int | None = None) -> Ranking:
  """Returns each query's shortlist (Ranking or ids, QS) in the order of the exact adapted scores; −1 is padding."""
  ids_QS = np.asarray(shortlist.ids if isinstance(shortlist, Ranking) else shortlist)
  k = ids_QS.shape[1] if k is None else k
  check(adaptation, gallery, k)
  ids_QS = np.sort(ids_QS, axis=1)
  ids_QS[:, 1:][ids_QS[:, 1:] == ids_QS[:, :-1]] = -1
  scores = [
    np.asarray(score(adaptation[i : i + 1], jnp.asarray(gallery[np.maximum(ids_S, 0)])))[0]
    for i, ids_S in enumerate(ids_QS)
  ]
  return Ranking(*best(ids_QS, np.where(ids_QS < 0, -np.inf, np.stack(scores)), k))


def best(ids_QN: np.ndarray, scores_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the k best items of each row, best first, lower id first where scores are equal; −1 and −inf pad."""
  order_QN = np.lexsort((ids_QN, -scores_QN), axis=1)[:, :k]
  missing = ((0, 0), (0, k - order_QN.shape[1]))
  ids_QK = np.pad(np.take_along_axis(ids_QN, order_QN, 1), missing, constant_values=-1).astype(np.int32)
  scores_QK = np.pad(np.take_along_axis(scores_QN, order_QN, 1), missing, constant_values=-np.inf)
  return ids_QK, scores_QK.astype(np.float32)


def check(adaptation: Adaptation, gallery: Any, k: int) -> None:
  """Raises ValueError unless the adaptation is for such a gallery."""
  if len(gallery) == 0:
    raise ValueError("the gallery is empty; nothing can be ranked")
  if k <= 0:
    raise ValueError(f"k is {k}; it must be at least 1")
  width = gallery.width if hasattr(gallery, "width") else gallery.shape[1]
  if width != adaptation.query.shape[1]:
    raise ValueError(f"the gallery is {width} wide, the adaptation {adaptation.query.shape[1]}; use the same encoder")
  space = getattr(gallery, "space", adaptation.space)
  if space != adaptation.space:
    raise ValueError(
      f"the gallery's space is {space!r}, the adaptation wants {adaptation.space!r}; use adapter.prepare(gallery)"
    )
