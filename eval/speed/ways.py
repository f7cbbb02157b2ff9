"""The ways to rank a gallery that eval.latency compares: a function without arguments each, and its cost in theory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

import qat_jax
from qat_jax.adaptation import plain, score
from qat_jax.search.bounds import prepare
from qat_jax.search.rank import rank, rerank
from qat_jax.types import Adaptation

DENSE_ROWS = 4096
GALLERY_ROWS = 1 << 20  # drawn at once
SCORE_ROWS = 8192


class Way(NamedTuple):
  """One way: `run` does it all for Q queries and returns when done; the rest is the least that it must do."""

  run: Callable[[], object]
  items: int  # a query, that it scores
  bytes_moved: float
  flops: float


def make_adaptation(queries: int, width: int, rank: int, strengths_R: np.ndarray, seed: int = 0) -> Adaptation:
  """Returns T = I + Σ strength_i l_i r_iᵀ with random orthonormal l and r, and random unit queries."""
  rng = np.random.default_rng(seed)
  factors = np.linalg.qr(rng.standard_normal((2, queries, width, rank)))[0] * np.sqrt(strengths_R)
  query_QD = rng.standard_normal((queries, width))
  query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
  left_QDR, right_QDR = jnp.asarray(factors, jnp.float32)
  return Adaptation(jnp.asarray(query_QD, jnp.float32), jnp.ones((queries, 1)), left_QDR, right_QDR)


def make_gallery(items: int, width: int, dtype: str, seed: int = 1) -> jax.Array:
  """Returns random unit rows."""
  block = min(items, GALLERY_ROWS)

  @functools.partial(jax.jit, donate_argnums=0)
  def with_block(gallery_ND: jax.Array, start: int, key: jax.Array) -> jax.Array:
    drawn_BD = jax.random.normal(key, (block, width))
    drawn_BD /= jnp.linalg.norm(drawn_BD, axis=1, keepdims=True)
    return jax.lax.dynamic_update_slice_in_dim(gallery_ND, drawn_BD.astype(dtype), start, 0)

  gallery_ND, key = jnp.zeros((items, width), dtype), jax.random.key(seed)
  for start in range(0, items, block):
    gallery_ND = with_block(gallery_ND, min(start, items - block), jax.random.fold_in(key, start) if start else key)
  return gallery_ND


def ways(adaptation: Adaptation, gallery_ND: jax.Array, k: int) -> dict[str, Way | str]:
  """Returns the ways that need nothing but JAX, by name; the reason in words where the memory is too small for one."""
  queries, width = adaptation.query.shape
  rank_R, items = adaptation.left.shape[2], len(gallery_ND)
  size = gallery_ND.size * gallery_ND.dtype.itemsize
  every = float(queries) * items
  gate = 1 + 0.3 * jax.random.normal(jax.random.key(2), (queries, width))
  empty_QDR = jnp.zeros((queries, width, 0))
  gated = Adaptation(adaptation.query, gate, empty_QDR, empty_QDR)
  unchanged = plain(adaptation.query)
  columns = prepare(adaptation).bounds.columns.shape[1] / queries
  dense_flops, needed = every * 2 * width * width, 2 * every * 4 * width
  materialised = Way(lambda: jax.block_until_ready(dense(adaptation, gallery_ND, k)), items, size, dense_flops)
  blocks = Way(lambda: jax.block_until_ready(dense_blocks(adaptation, gallery_ND, k)), items, size, dense_flops)
  found: dict[str, Way | str] = {
    "dense": materialised if needed < free_bytes() else f"not run: its mapped items take {needed / 1e9:.1f} GB",
    "dense_blocks": blocks,
    "factored": Way(lambda: factored(adaptation, gallery_ND, k), items, size, every * 2 * width * (1 + 2 * rank_R)),
    "rank": Way(lambda: rank(adaptation, gallery_ND, k), items, size, every * 2 * width * columns),
    "gated": Way(lambda: rank(gated, gallery_ND, k), items, size, every * 4 * width),
    "plain": Way(lambda: jax.block_until_ready(top(gallery_ND, adaptation.query, k)), items, size, every * 2 * width),
    "plain_rank": Way(lambda: rank(unchanged, gallery_ND, k), items, size, every * 2 * width),
  }
  for name, length in (("rerank_1k", 1000), ("rerank_10k", 10_000)):
    if length > items:
      continue
    shortlist_QS = np.random.default_rng(3).integers(0, items, (queries, length))
    moved = queries * length * width * gallery_ND.dtype.itemsize
    flops = queries * length * 4 * width * rank_R
    found[name] = Way(functools.partial(rerank, adaptation, gallery_ND, shortlist_QS, k), length, moved, flops)
  return found


def library_ways(adaptation: Adaptation, gallery_ND: jax.Array, k: int) -> dict[str, Way | str]:
  """Returns FAISS's exact plain search, and ScaNN's shortlist reranked; the reason in words where one is missing."""
  queries, width = adaptation.query.shape
  host_ND = np.asarray(gallery_ND, np.float32)
  found: dict[str, Way | str] = {}
  try:
    import faiss
  except ImportError:
    found["faiss_flat"] = "not installed: pip install 'qat-jax[bench]'"
  else:
    index = faiss.IndexFlatIP(width)
    index.add(host_ND)
    query_QD = np.asarray(adaptation.query)
    flops = 2.0 * queries * host_ND.size
    found["faiss_flat"] = Way(lambda: index.search(query_QD, k), len(host_ND), host_ND.nbytes, flops)
  try:
    scann = qat_jax.ScannIndex.build(host_ND)
  except ImportError as error:
    found["scann_rerank"] = str(error)
  else:
    folded_QD = np.asarray(qat_jax.fold(adaptation))
    length = min(1000, len(host_ND))
    run = lambda: rerank(adaptation, gallery_ND, scann.search(folded_QD, length), k)
    moved = queries * length * width * 4.0
    found["scann_rerank"] = Way(run, len(host_ND), moved, moved * adaptation.left.shape[2])
  return found


@functools.partial(jax.jit, static_argnums=2)
def top(gallery_ND: jax.Array, query_QD: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns the plain inner products' top k: what an unadapted search costs in JAX."""
  return jax.lax.top_k(jnp.matmul(gallery_ND, query_QD.T.astype(gallery_ND.dtype)).T.astype(jnp.float32), k)


@functools.partial(jax.jit, static_argnums=2)
def dense(adaptation: Adaptation, gallery_ND: jax.Array, k: int) -> jax.Array:
  """Returns the top k as the original programs find it: a D×D map a query, Q×N×D mapped items, normalised."""
  mapped_QND = jnp.einsum("QDE,NE->QND", _maps(adaptation), gallery_ND.astype(jnp.float32))
  mapped_QND /= jnp.linalg.norm(mapped_QND, axis=2, keepdims=True)
  return jax.lax.top_k(jnp.einsum("QND,QD->QN", mapped_QND, adaptation.query), k)[1]


def dense_blocks(adaptation: Adaptation, gallery_ND: jax.Array, k: int) -> jax.Array:
  """Returns what `dense` does, by blocks of items that a cache holds, one query at a time."""
  parts = [
    _dense_block(adaptation, jax.lax.dynamic_slice_in_dim(gallery_ND, start, min(DENSE_ROWS, len(gallery_ND) - start)))
    for start in range(0, len(gallery_ND), DENSE_ROWS)
  ]
  return jax.lax.top_k(jnp.concatenate(parts, axis=1), k)[1]


@jax.jit
def _dense_block(adaptation: Adaptation, gallery_ND: jax.Array) -> jax.Array:
  def one(query: tuple[jax.Array, jax.Array]) -> jax.Array:
    query_D, map_DE = query
    mapped_ND = gallery_ND.astype(jnp.float32) @ map_DE.T
    return (mapped_ND / jnp.linalg.norm(mapped_ND, axis=1, keepdims=True)) @ query_D

  return jax.lax.map(one, (adaptation.query, _maps(adaptation)))


def _maps(adaptation: Adaptation) -> jax.Array:
  """Returns T (QDD) of each query."""
  gate_QD = jnp.broadcast_to(adaptation.gate, adaptation.query.shape)
  return jax.vmap(jnp.diag)(gate_QD) + jnp.einsum("QDR,QER->QDE", adaptation.left, adaptation.right)


def free_bytes() -> int:
  """Returns how much memory the default device has left."""
  stats = jax.devices()[0].memory_stats()
  return stats["bytes_limit"] - stats["bytes_in_use"] if stats else psutil.virtual_memory().available


def factored(adaptation: Adaptation, gallery_ND: jax.Array, k: int) -> jax.Array:
  """Returns the top k of the full formula, item by item."""
  parts = [score(adaptation, gallery_ND[start : start + SCORE_ROWS]) for start in range(0, len(gallery_ND), SCORE_ROWS)]
  return jax.block_until_ready(jax.lax.top_k(jnp.concatenate(parts, axis=1), k)[1])
