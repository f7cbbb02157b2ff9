"""Scores of items, jitted: of some, of all; and tighter bounds of some. T z is written out for each.

Equal items get equal scores, whichever others they are scored with: the shapes of the products are what decides that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import SUMMED, TINY, cosine, power_of_two, sums
from qat_jax.search.bounds import Bounds, Factors, Prepared
from qat_jax.search.cores import cores, on_cores
from qat_jax.search.gallery import Part
from qat_jax.search.kernels import upper

ITEMS = 128  # of a query, scored at once: always so many, since other shapes round otherwise, and ties would be none
PIECE = {"cpu": 32}  # times ITEMS that a call works on at most, one by one, on one core
AT_ONCE = 32  # times ITEMS that are worked on at once elsewhere, where a call works on all
EVEN = 64  # items: a number of rows that no product rounds differently at its end
DEEP_NUMBERS = 1 << 22  # mapped items that are held at once


def scores(factors: Factors, part: Part, query_P: np.ndarray, item_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns cosine(q', T z) and |T z| (two P, float32) of some of a part's items, query by query."""
  if part.platform in PIECE and not factors.left.shape[2]:
    return _without_factors(factors, part, query_P, item_P)
  score_P, length_P = _of_pairs(_scores, factors, part, query_P, item_P)
  return score_P, length_P


def _without_factors(
  factors: Factors, part: Part, query_P: np.ndarray, item_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """As `scores`, of maps that are a gate alone, by NumPy: XLA takes twice as long to gather rows.

  Row by row, in pieces of a row, so that equal items have equal scores and no more than SUMMED numbers are added up in
  a row. On one core, since NumPy's threads would wait for each other.
  """
  query_QD, gate_QD = (np.asarray(x, np.float32) for x in factors[:2])
  score_P, length_P = np.empty((2, len(query_P)), np.float32)
  end_Q = np.cumsum(np.bincount(query_P)).tolist()
  for query, (first, last) in enumerate(zip([0, *end_Q], end_Q, strict=False)):
    for at in (slice(start, min(start + ITEMS, last)) for start in range(first, last, ITEMS)):
      item_BD, query_D, gate_D = part.rows(item_P[at]), query_QD[query], gate_QD[query]
      if len(gate_D) > 1:
        item_BD = gate_D * item_BD
        score_P[at], length_P[at] = _summed(item_BD, query_D), _summed(item_BD, item_BD)
      else:
        score_P[at], length_P[at] = _summed(item_BD, gate_D * query_D), gate_D * gate_D * _summed(item_BD, item_BD)
  length_P = np.sqrt(length_P)
  return score_P / np.maximum(length_P, TINY), length_P


def _summed(x_BD: np.ndarray, y_BD: np.ndarray) -> np.ndarray:
  """Returns Σ x y of each row (B); NumPy adds up each fourth number of a piece in a row, or fewer."""
  width, each = x_BD.shape[1], 4 * SUMMED
  if width % each == 0:
    x_BPE, y_BPE = (x.reshape(*x.shape[:-1], -1, each) for x in (x_BD, y_BD))
    return np.einsum("...PE,...PE->P...", x_BPE, y_BPE).sum(axis=0)
  cuts = [slice(start, start + each) for start in range(0, width, each)]
  return functools.reduce(np.add, [np.einsum("...D,...D->...", x_BD[:, cut], y_BD[..., cut]) for cut in cuts])


def refined_bounds(prepared: Prepared, part: Part, query_P: np.ndarray, item_P: np.ndarray) -> np.ndarray:
  """Returns tighter upper bounds (P) of some of a part's items, by every direction of their cut maps."""
  assert prepared.tight is not None
  lengths_Q2 = np.tile(part.lengths, (len(prepared.tight.floor), 1))
  return _of_pairs(_refined, (prepared.tight, lengths_Q2), part, query_P, item_P)[0]


def _scores(factors: Factors, item_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
  query_D, gate_D, left_DR, right_DR, _ = map(jnp.asarray, factors)
  return cosine(query_D, gate_D, left_DR, right_DR, item_BD)


def _refined(tree: tuple[Bounds, jax.Array], item_BD: jax.Array) -> tuple[jax.Array]:
  bounds, lengths = tree
  return (upper(bounds, item_BD, lengths)[:, 0],)


def _of_pairs(
  function: Callable, tree: object, part: Part, query_P: np.ndarray, item_P: np.ndarray
) -> list[np.ndarray]:
  """Returns function(a query's own branch of `tree`, items BD) for pairs, some items of a query at a time."""
  count_Q = np.bincount(query_P)
  chunks_Q = -(-count_Q // ITEMS)
  within_P = np.arange(len(query_P)) - (np.cumsum(count_Q) - count_Q)[query_P]
  chunk_P, slot_P = (np.cumsum(chunks_Q) - chunks_Q)[query_P] + within_P // ITEMS, within_P % ITEMS
  chunks, in_turn = max(1, int(chunks_Q.sum())), part.platform in PIECE
  if in_turn:
    size = PIECE[part.platform]
    each = min(size, -(-chunks // cores()))
  else:
    size = each = max(AT_ONCE, power_of_two(chunks))
  starts = range(0, chunks, each)
  query_C, item_CB = np.zeros(len(starts) * size, np.int32), np.zeros((len(starts) * size, ITEMS), np.int32)
  query_C[chunk_P] = query_P
  item_CB[chunk_P, slot_P] = item_P + part.offset

  def one(start: int) -> list[np.ndarray]:
    some, count = (x[start : start + size] for x in (query_C, item_CB)), min(each, chunks - start) if in_turn else None
    return [np.asarray(x)[:each] for x in _by_chunks(function, tree, part.features, *some, count)]

  found = zip(*on_cores(one, starts), strict=True)
  return [np.concatenate(x_CB)[chunk_P, slot_P] for x_CB in found]


@functools.partial(jax.jit, static_argnames="function")
def _by_chunks(
  function: Callable, tree: object, gallery_ND: jax.Array, query_C: np.ndarray, item_CB: np.ndarray, count: int | None
) -> tuple[jax.Array, ...]:
  """Returns the function's results (CB) of all chunks, or of the first `count`, one by one: one program for any."""

  def one(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    query, item_B = chunk
    return function(jax.tree.map(lambda x: x[query], tree), gallery_ND[item_B].astype(jnp.float32))

  if count is None:
    return jax.lax.map(one, (query_C, item_CB), batch_size=AT_ONCE)

  def next_one(i: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return jax.tree.map(lambda x, y: x.at[i].set(y), found, one((query_C[i], item_CB[i])))

  empty = jax.tree.map(lambda _: jnp.zeros(item_CB.shape), jax.eval_shape(one, (query_C[0], item_CB[0])))
  return jax.lax.fori_loop(0, count, next_one, empty)


def all_scores(factors: Factors, part: Part, queries: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns cosine(q', T z) and |T z| (two QN, float32) of all of a part's items."""
  width, rows = factors.query.shape[1], part.window
  most = max(EVEN, 1 << (DEEP_NUMBERS // (len(factors.query) * width)).bit_length() - 1)
  block = min(most, -(-rows // EVEN) * EVEN)
  start = np.int32(part.offset - part.skipped)
  found = _all_scores(factors, part.features, start, rows, block)
  score_QN, length_QN = (np.asarray(x)[:queries, part.skipped : part.skipped + part.items] for x in found)
  return score_QN, length_QN


@functools.partial(jax.jit, static_argnames=("rows", "block"))
def _all_scores(
  factors: Factors, gallery_ND: jax.Array, start: jax.Array, rows: int, block: int
) -> tuple[jax.Array, jax.Array]:
  blocks = -(-rows // block)

  def one(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    row_B = jnp.minimum(i * block + jnp.arange(block), rows - 1)  # the last block is filled up with the last row
    item_BD = gallery_ND[start + row_B].astype(jnp.float32)
    if factors.left.shape[2]:
      new = jax.vmap(_scores, in_axes=(0, None))(factors, item_BD)
    else:
      numerator_QB = sums("QD,BD->QB", factors.query * factors.gate, item_BD)
      gate_QD = jnp.broadcast_to(factors.gate, factors.query.shape)
      length_QB = jnp.sqrt(sums("QD,BD->QB", jnp.square(gate_QD), jnp.square(item_BD)))
      new = numerator_QB / jnp.maximum(length_QB, 1e-30), length_QB
    score_QN, length_QN = (
      jax.lax.dynamic_update_slice_in_dim(x, y, i * block, 1) for x, y in zip(found, new, strict=True)
    )
    return score_QN, length_QN

  empty_QN = jnp.zeros((len(factors.query), blocks * block))
  score_QN, length_QN = jax.lax.fori_loop(0, blocks, one, (empty_QN, empty_QN))
  return score_QN[:, :rows], length_QN[:, :rows]
