"""Lengths that gates give the items of an 8-bit copy, from below.

An item is z = centre + v, so |g ∘ z|² = 2 z·(g² ∘ centre) − |g ∘ centre|² + |g ∘ v|². The first is the product with one
more column. v is scale · step ∘ values, but for what the copy leaves out, and |g ∘ step ∘ values|² is a product of the
values' squares, which are cut to 7 bits on the way, with (g ∘ step)², cut to 8 bits: all rounded down. docs/proof.md
has the proof (lemma 11).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.quicker import LARGEST
from qat_jax.search.bounds import UNIT
from qat_jax.search.coarse import Coarse, raised, whole_sums

BITS = 7  # of a square, from 14


class CutGates(NamedTuple):
  """The squares of Q gates in 8 bits, rounded down (lemma 11)."""

  values: jax.Array  # DQ, int8, or float32 up to EXACT; of one gate twice
  size: jax.Array  # Q: of the sums of cut squares
  centre: jax.Array  # Q: |gate ∘ centre|² at most
  most: jax.Array  # Q: |gate| at most
  step_most: jax.Array  # Q: |gate ∘ step| at most


def cut_gates(square_DQ: jax.Array | np.ndarray, items: Coarse, kind: str) -> CutGates:
  """Returns squares of gates in 8 bits, for the items' steps, as numbers of a kind that they are multiplied as."""
  width, queries = square_DQ.shape
  stepped_DQ = jnp.square(items.step)[:, None] * square_DQ
  size_Q = jnp.maximum(stepped_DQ.max(axis=0) / LARGEST, 1e-30)
  values_DQ = jnp.tile(jnp.floor(stepped_DQ / size_Q[None]), (1, 2 if queries == 1 else 1))
  centre_Q = raised((square_DQ * jnp.square(items.centre)[:, None]).sum(axis=0), width)
  most_Q, step_most_Q = (raised(jnp.sqrt(x_DQ.max(axis=0)), 0) for x_DQ in (square_DQ, stepped_DQ))
  return CutGates(values_DQ.astype(kind), 2**BITS * size_Q * (1 - 16 * UNIT), centre_Q, most_Q, step_most_Q)


def least_squares(items: Coarse, gates: CutGates, along_BQ: jax.Array) -> jax.Array:
  """Returns what |gate ∘ item|² is at least (BQ; lemma 11), from a lower bound of item · (gate² ∘ centre)."""
  wide_BD = items.values.astype(jnp.int16)
  square_BD = jnp.right_shift(wide_BD * wide_BD, BITS).astype(jnp.int8)
  sum_BQ = whole_sums(square_BD, gates.values)[:, : len(gates.size)]
  error_BQ = jnp.minimum(items.error[:, None] * gates.most[None], items.step_error[:, None] * gates.step_most[None])
  length_BQ = items.scale[:, None] * jnp.sqrt(sum_BQ.astype(jnp.float32) * gates.size[None])
  square_BQ = jnp.square(jnp.maximum(length_BQ - error_BQ, 0))
  rounded_BQ = 8 * UNIT * (2 * jnp.abs(along_BQ) + gates.centre[None] + square_BQ)
  return 2 * along_BQ - gates.centre[None] + square_BQ - rounded_BQ
