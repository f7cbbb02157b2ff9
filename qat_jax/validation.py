"""Validation: one number, mAP over queries, for a form while it trains and for a head that is to serve."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.metrics import average_precision
from qat_jax.search.rank import score
from qat_jax.types import Ranking, Relevance

QUERY_BLOCK = 64  # queries scored at once: their scores and factors are all that is held


class Validator:
  """Queries, gallery and relevance of a split, held on the device; calling it gives mAP over the whole ranking."""

  def __init__(self, query_QD: np.ndarray, gallery_ND: np.ndarray, relevance: Relevance, limit: int, seed: int) -> None:
    """Keeps `limit` queries that have something relevant (0: all), drawn with `seed`."""
    usable = np.flatnonzero([len(p) > 0 for p in relevance.positives])
    if 0 < limit < len(usable):
      usable = np.sort(np.random.default_rng(seed).choice(usable, limit, replace=False))
    self.query_QD = np.asarray(query_QD[usable], np.float32)
    self.gallery_ND = jnp.asarray(gallery_ND, jnp.float32)
    self.relevance = relevance.take(usable)

  def __call__(self, module: nn.Module, variables: dict) -> float:
    """Returns mAP, a fraction, of a form with these variables."""
    return float(self.precisions(module, variables).mean())

  def with_queries(self, query_QD: np.ndarray) -> Validator:
    """Returns the same validation with other vectors for its queries."""
    other = copy.copy(self)
    other.query_QD = query_QD
    return other

  def some(self, count: int) -> Validator:
    """Returns the same validation with `count` of its queries, evenly spaced; all if there are no more."""
    rows = np.unique(np.linspace(0, len(self.query_QD) - 1, min(count, len(self.query_QD))).astype(int))
    other = self.with_queries(self.query_QD[rows])
    other.relevance = self.relevance.take(rows)
    return other

  def of_search(self, search: Callable[[np.ndarray, int], Ranking]) -> float:
    """Returns mAP, a fraction, of what a search of this gallery, (query_QD, k) → Ranking, finds in all of it."""
    ids_QN = np.asarray(search(self.query_QD, len(self.gallery_ND)).ids)
    return float(average_precision(ids_QN, self.relevance).mean())

  def precisions(self, module: nn.Module, variables: dict) -> np.ndarray:
    """Returns the average precision of each query (Q)."""
    gallery_ND = _prepare(module, variables, self.gallery_ND)
    ids = []
    for start in range(0, len(self.query_QD), QUERY_BLOCK):
      block_QD = self.query_QD[start : start + QUERY_BLOCK]
      spare = QUERY_BLOCK - len(block_QD)
      padded_QD = np.concatenate([block_QD, np.repeat(block_QD[-1:], spare, axis=0)])
      score_QN = np.asarray(_score(module, variables, jnp.asarray(padded_QD), gallery_ND))
      ids.append(np.argsort(-score_QN[: len(block_QD)], axis=1, kind="stable").astype(np.int32))
    return average_precision(np.concatenate(ids), self.relevance)


@functools.partial(jax.jit, static_argnums=0)
def _prepare(module: nn.Module, variables: dict, gallery_ND: jax.Array) -> Any:
  return module.apply(variables, gallery_ND, method="prepare")


@functools.partial(jax.jit, static_argnums=0)
def _score(module: nn.Module, variables: dict, query_QD: jax.Array, gallery_ND: jax.Array) -> jax.Array:
  return score(module.apply(variables, query_QD), gallery_ND)
