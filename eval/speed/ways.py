"""The ways to rank a gallery that eval.speed.search compares, each with what it must at least move and compute."""

from __future__ import annotations

import functools
import os
import unittest.mock
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import psutil

import qat_jax
from qat_jax.adaptation import plain, score
from qat_jax.models.forms import adaptive, initialise
from qat_jax.models.quari import Released
from qat_jax.search.bounds import prepare
from qat_jax.search.coarse import SWITCH
from qat_jax.search.rank import rank, rerank
from qat_jax.search.sums import Term, rank_sum
from qat_jax.types import Adaptation
from qat_jax.words import by_words

DENSE_ROWS = 4096
SCORE_ROWS = 8192
RELEASED: dict[str, Any] = {"hidden": 512, "rank": 64, "layers": 6, "steps": 4, "heads": 8} | {
  "anchor_scale": 0.8,
  "query_residual": 0.5,
  "frobenius_norm": True,
}  # the size of the released checkpoints
DEMO_WIDTH = 96
WORDS, SAMPLED = 16, 2048  # phrases of an aspect, and items that give the gallery's mean


class SearchWay(NamedTuple):
  """One way: `run` does it all for Q queries and returns when done; the rest is the least that it must do."""

  run: Callable[[], object]
  items: int  # a query, that it scores
  bytes_moved: float
  flops: float


def ways(adaptation: Adaptation, gallery_ND: jax.Array, k: int) -> dict[str, SearchWay | str]:
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
  materialised = SearchWay(lambda: jax.block_until_ready(dense(adaptation, gallery_ND, k)), items, size, dense_flops)
  blocks = SearchWay(lambda: jax.block_until_ready(dense_blocks(adaptation, gallery_ND, k)), items, size, dense_flops)
  named: dict[str, SearchWay | str] = {
    "dense": materialised if needed < free_bytes() else f"not run: its mapped items take {needed / 1e9:.1f} GB",
    "dense_blocks": blocks,
    "factored": SearchWay(
      lambda: factored(adaptation, gallery_ND, k), items, size, every * 2 * width * (1 + 2 * rank_R)
    ),
    "rank": SearchWay(lambda: rank(adaptation, gallery_ND, k), items, size, every * 2 * width * columns),
    "gated": SearchWay(lambda: rank(gated, gallery_ND, k), items, size, every * 4 * width),
    "plain": SearchWay(
      lambda: jax.block_until_ready(top(gallery_ND, adaptation.query, k)), items, size, every * 2 * width
    ),
    "plain_rank": SearchWay(lambda: rank(unchanged, gallery_ND, k), items, size, every * 2 * width),
  }
  phrase_WD = np.random.default_rng(4).standard_normal((WORDS, width))  # of one aspect, for all queries
  told = functools.partial(by_words, np.asarray(adaptation.query), gallery=gallery_ND[:SAMPLED])
  for name, of_words in (("alike", told(alike=phrase_WD)), ("ignore", told(ignore=phrase_WD))):
    run = functools.partial(rank, of_words, gallery_ND, k)
    named[name] = SearchWay(run, items, size, items * 2 * width * (queries + WORDS - 1))
  # as a text query with marks: two terms, the second's gallery being the same items with their dimensions turned round
  other = functools.cache(lambda: jnp.asarray(gallery_ND[:, ::-1]))
  both = lambda: rank_sum([Term(unchanged, gallery_ND), Term(unchanged, other())], k)
  named["two_galleries"] = SearchWay(both, items, 2 * size, every * 4 * width)
  for name in ("rank", "plain_rank"):
    way = named[name]
    assert isinstance(way, SearchWay)
    named[f"{name}_float32"] = way._replace(run=functools.partial(in_float32, way.run))
  for name, length in (("rerank_1k", 1000), ("rerank_10k", 10_000)):
    if length > items:
      continue
    shortlist_QS = np.random.default_rng(3).integers(0, items, (queries, length))
    moved = queries * length * width * gallery_ND.dtype.itemsize
    flops = queries * length * 4 * width * rank_R
    named[name] = SearchWay(functools.partial(rerank, adaptation, gallery_ND, shortlist_QS, k), length, moved, flops)
  return named


def library_ways(adaptation: Adaptation, gallery_ND: jax.Array, k: int) -> dict[str, SearchWay | str]:
  """Returns FAISS's exact plain search, and ScaNN's shortlist reranked; the reason in words where one is missing."""
  queries, width = adaptation.query.shape
  host_ND = np.asarray(gallery_ND, np.float32)
  named: dict[str, SearchWay | str] = {}
  try:
    import faiss
  except ImportError:
    named["faiss_flat"] = "not installed: pip install 'qat-jax[bench]'"
  else:
    index = faiss.IndexFlatIP(width)
    index.add(host_ND)
    query_QD = np.asarray(adaptation.query)
    flops = 2.0 * queries * host_ND.size
    named["faiss_flat"] = SearchWay(lambda: index.search(query_QD, k), len(host_ND), host_ND.nbytes, flops)
  try:
    scann = qat_jax.ScannIndex.build(host_ND)
  except ImportError as error:
    named["scann_rerank"] = str(error)
  else:
    folded_QD = np.asarray(qat_jax.fold(adaptation))
    length = min(1000, len(host_ND))
    run = lambda: rerank(adaptation, gallery_ND, scann.search(folded_QD, length), k)
    moved = queries * length * width * 4.0
    named["scann_rerank"] = SearchWay(run, len(host_ND), moved, moved * adaptation.left.shape[2])
  return named


def in_float32(run: Callable[[], object]) -> object:
  """Returns what a search does that leaves the 8-bit copies of galleries alone."""
  with unittest.mock.patch.dict(os.environ, {SWITCH: "float32"}):
    return run()


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


def networks(queries: int) -> dict[str, SearchWay]:
  """Returns hypernetworks by name, each adapting Q random queries with random weights."""
  modules: dict[str, nn.Module] = {
    "released, R+1 tokens": Released(768, **RELEASED),
    "released, 2R+1 tokens": Released(768, **RELEASED, shared_tokens=False),
    "released, R+1 tokens, bfloat16": Released(768, **RELEASED, dtype="bfloat16"),
    "demo (adaptive)": adaptive(DEMO_WIDTH),
  }
  return {name: network_way(module, queries) for name, module in modules.items()}


def network_way(module: nn.Module, queries: int) -> SearchWay:
  """Returns one network as a way, compiled; its operations are XLA's count before optimisation."""
  variables = initialise(module, jax.random.key(0))
  query_QD = jax.random.normal(jax.random.key(1), (queries, module.width), jnp.float32)
  lowered = jax.jit(module.apply).lower(variables, query_QD)
  call = lowered.compile()
  size = sum(x.nbytes for x in jax.tree.leaves(variables))
  cost = lowered.cost_analysis() or {"flops": float("nan")}  # None where the backend does not count
  return SearchWay(lambda: call(variables, query_QD), 1, size, cost["flops"])
