"""An 8-bit copy of a gallery, and inner products with its items as intervals: what the filter reads where that pays.

An item is z = centre + scale · step ∘ values + e, with a centre and a step a dimension (features have a few large
ones, and lie in a cone), a scale an item, and values from −127 to 127. What e comes to is measured, an item at a time.
A column x is cut the same way: step ∘ x = size · p + δ. Then x·z is x·centre + scale · size · p·values, where p·values
is a sum of integers and has no rounding, and what that leaves out is at most

    min(|x| |e|, |step ∘ x| |e / step|) + |δ| |scale · values| .

docs/proof.md has the proof (lemmas 6 to 8), with the few roundings that are left.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST
from qat_jax.quicker import LARGEST, multiplies_faster
from qat_jax.search.bounds import UNIT
from qat_jax.search.cores import on_cores

SAMPLE = 4096  # items that centre and steps are taken from: they decide how good the bounds are, never if they hold
FLATTEST = 2.0**-6  # of the largest step: the least one
COPIED_ROWS = 1024  # of a call that makes the copy
TOGETHER = 12  # columns that one product of 8 bits takes as fast as 8
WIDEST = 1 << 17  # dimensions whose sums of products of 8 bits 32 bits hold
EXACT = (1 << 24) // LARGEST**2  # dimensions whose sums of products of 8 bits float32 holds without rounding
LEAST_NUMBERS = 1 << 22  # of a gallery: smaller ones take less than a millisecond in float32
AFTER = 4  # searches of a gallery, after which it is worth a copy: to make one costs as much as a few of them
TRIES, KEPT, AGAIN = (
  3,
  8,
  128,
)  # searches each way at first, whose times are kept, until the slower way gets another one
TRIED = (1 << 14, 512, 8)  # rows, dimensions and columns of the products that are timed
Result = TypeVar("Result")
SWITCH = "QAT_JAX_SEARCH"  # the environment variable that leaves the copy out where it says `float32`


class Coarse(NamedTuple):
  """An 8-bit copy of N items."""

  values: jax.Array  # ND, int8
  scale: jax.Array  # N
  error: jax.Array  # N: |e| at most
  step_error: jax.Array  # N: |e / step| at most
  centre: jax.Array  # D
  step: jax.Array  # D
  reach: jax.Array  # the greatest scale · |values| of the items

  def with_values(self, start: int, count: int) -> Coarse:
    """Returns the copy with values of consecutive items alone, on a CPU without copying them; `block` knows it."""
    return self._replace(values=row_view(self.values, start, count))

  def block(self, start: jax.Array, rows: int) -> Coarse:
    """Returns the copy of consecutive items; where there are values of so many, these are theirs."""
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows)
    values = self.values if rows == len(self.values) else cut(self.values)
    return Coarse(values, cut(self.scale), cut(self.error), cut(self.step_error), *self[4:])


def row_view(array: jax.Array, start: int, count: int) -> jax.Array:
  """Returns consecutive rows of an array on a CPU; where they begin at a multiple of 64 bytes, they are not copied."""
  return jax.device_put(np.asarray(array)[start : start + count], next(iter(array.devices())))


class CutColumns(NamedTuple):
  """C columns in 8 bits, and maybe what is left of them in as many more."""

  values: jax.Array  # DP, int8, or float32 up to EXACT; P = C, or 2 C
  size: jax.Array  # P
  centre: jax.Array  # C: column · centre
  length: jax.Array  # C: |column| at most
  step_length: jax.Array  # C: |step ∘ column| at most
  doubt: jax.Array  # C: what the column's own cut, and all rounding, leave out at most


def copied(features_ND: jax.Array) -> Coarse:
  """Returns the 8-bit copy of finite features on a CPU."""
  return copied_by(features_ND, *grid(features_ND))[0]


def copied_by(features_ND: jax.Array, centre_D: jax.Array, step_D: jax.Array) -> tuple[Coarse, np.ndarray]:
  """Returns the 8-bit copy of features on a CPU by a centre and steps, and the features' squared lengths (N)."""
  items, width = features_ND.shape
  rows = min(items, COPIED_ROWS)
  values_ND, numbers_XN = np.empty((items, width), np.int8), np.empty((5, items), np.float32)

  def one(start: int) -> None:
    at = slice(min(start, items - rows), min(start + rows, items))
    values_ND[at], *others = _copied(features_ND, np.int32(at.start), centre_D, step_D, rows)
    numbers_XN[:, at] = others

  on_cores(one, range(0, items, rows))
  scale_N, error_N, step_error_N, reach_N = map(jnp.asarray, numbers_XN[:4])
  copy = Coarse(jnp.asarray(values_ND), scale_N, error_N, step_error_N, centre_D, step_D, reach_N.max())
  return copy, numbers_XN[4]


@jax.jit
def grid(features_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the centre of some items, and how far they are from it in each dimension (two D)."""
  items = len(features_ND)
  sample_SD = features_ND[jnp.arange(min(SAMPLE, items)) * (items // min(SAMPLE, items))].astype(jnp.float32)
  centre_D = sample_SD.mean(axis=0)
  step_D = jnp.sqrt(jnp.square(sample_SD - centre_D[None]).mean(axis=0))
  return centre_D, jnp.maximum(step_D, jnp.maximum(FLATTEST * step_D.max(), 1e-4))


@functools.partial(jax.jit, static_argnames="rows")
def _copied(
  features_ND: jax.Array, start: jax.Array, centre_D: jax.Array, step_D: jax.Array, rows: int
) -> tuple[jax.Array, ...]:
  """Returns values, scale, |e| and |e / step| at most, scale · |values| at most (lemma 6), and |z|² of some items."""
  width = features_ND.shape[1]
  once = jax.lax.optimization_barrier  # or XLA would compute it anew for each sum
  item_BD = once(jax.lax.dynamic_slice_in_dim(features_ND, start, rows).astype(jnp.float32))
  rest_BD = item_BD - centre_D[None]
  stepped_BD = rest_BD / step_D[None]
  scale_B = jnp.maximum(jnp.abs(stepped_BD).max(axis=1) / LARGEST, 1e-30)
  value_BD = once(jnp.clip(jnp.round(stepped_BD / scale_B[:, None]), -LARGEST, LARGEST))
  error_BD = once(rest_BD - scale_B[:, None] * step_D[None] * value_BD)
  length = lambda x_BD: raised(jnp.sqrt(jnp.square(x_BD).sum(axis=1)), width)
  error_B, step_error_B, reach_B = length(error_BD), length(error_BD / step_D[None]), scale_B * length(value_BD)
  step_error_B += 16 * UNIT * (step_error_B + reach_B)
  square_B = jnp.square(item_BD).sum(axis=1)
  return value_BD.astype(jnp.int8), scale_B, error_B + 32 * UNIT, step_error_B, reach_B, square_B


def raised(length: jax.Array, width: int) -> jax.Array:
  """Returns lengths, raised by more than float32 rounds a sum of squares and what is done with it."""
  return length * (1 + 4 * (width + 16) * UNIT)


def cut_columns(column_DC: jax.Array | np.ndarray, items: Coarse, kind: str = "int8", portions: int = 1) -> CutColumns:
  """Returns columns in 8 bits, for the items' steps (lemma 7).

  Args:
    column_DC: the columns.
    items: whose steps and centre are used.
    kind: the numbers that they are multiplied as, int8 or float32.
    portions: 2 where what 8 bits leave of a column is a column of 8 bits, too; or 1.
  """
  width, columns = column_DC.shape
  length = lambda x_DC: raised(jnp.sqrt(jnp.square(x_DC).sum(axis=0)), width)
  stepped_DC = items.step[:, None] * column_DC
  rest_DC, parts, sizes, part_length_C = stepped_DC, [], [], jnp.zeros(columns)
  for _ in range(portions):
    size_C = jnp.maximum(jnp.abs(rest_DC).max(axis=0) / LARGEST, 1e-30)
    part_DC = jnp.clip(jnp.round(rest_DC / size_C[None]), -LARGEST, LARGEST)
    rest_DC = rest_DC - size_C[None] * part_DC
    parts.append(part_DC.astype(kind))
    sizes.append(size_C)
    part_length_C += size_C * length(part_DC)
  length_C, step_length_C = length(column_DC), length(stepped_DC)
  centre_C = jnp.matmul(items.centre, column_DC, precision=HIGHEST)
  left_out_C = length(rest_DC) + 16 * UNIT * (step_length_C + part_length_C)
  doubt_C = items.reach * left_out_C + 4 * (width + 16) * UNIT * length_C
  return CutColumns(
    jnp.concatenate(parts, axis=1), jnp.concatenate(sizes), centre_C, length_C, step_length_C, raised(doubt_C, 0)
  )


def intervals(items: Coarse, columns: CutColumns) -> tuple[jax.Array, jax.Array]:
  """Returns inner products of items and columns, and what they may be off by (two BC; lemma 8)."""
  sum_BP = whole_sums(items.values, columns.values)
  product_BC = sum_BP.astype(jnp.float32) * columns.size[None]
  if sum_BP.shape[1] != len(columns.centre):
    product_BC = product_BC[:, : len(columns.centre)] + product_BC[:, len(columns.centre) :]
  product_BC = items.scale[:, None] * product_BC + columns.centre[None]
  error_BC = jnp.minimum(
    items.error[:, None] * columns.length[None], items.step_error[:, None] * columns.step_length[None]
  )
  return product_BC, error_BC + columns.doubt[None]


def whole_sums(value_BD: jax.Array, column_DP: jax.Array) -> jax.Array:
  """Returns value_BD @ column_DP, without rounding.

  XLA's CPU products of 8 bits are quickest with portions of 32 columns, and then of 8, up to 12.
  """
  if column_DP.dtype != jnp.int8:
    return jnp.matmul(value_BD.astype(jnp.float32), column_DP, precision=HIGHEST)
  ends, columns = [0], column_DP.shape[1]
  while (left := columns - ends[-1]) > TOGETHER:
    ends.append(ends[-1] + (32 if left >= 32 else 8))
  parts = jnp.split(column_DP, [end for end in ends[1:] if end < columns], axis=1)
  return jnp.concatenate([jnp.matmul(value_BD, x, preferred_element_type=jnp.int32) for x in parts], axis=1)


def wanted(features_ND: jax.Array, searches: int) -> bool:
  """Says whether a gallery that was searched so often is worth a copy."""
  if searches < AFTER or features_ND.size < LEAST_NUMBERS or features_ND.shape[1] > WIDEST:
    return False
  return not left_out() and quicker_kind() == "int8"


def left_out() -> bool:
  """Says whether the environment wants float32 alone."""
  return os.environ.get(SWITCH, "") == "float32"


def quicker_kind() -> str:
  """Returns as what a CPU multiplies numbers of 8 bits faster: int8 or float32."""
  return "int8" if multiplies_faster("int8", "int32", TRIED) else "float32"


class StoredCopy(Protocol):
  """The copy of a gallery that lies on disk."""

  width: int
  lengths: np.ndarray  # the least and the greatest |z|² of its items
  trial: Trial

  def __getitem__(self, rows: slice, /) -> Coarse:
    """Returns the copy of consecutive items, on the host."""

  def check(self) -> None:
    """Raises OSError where the copy is not that of the gallery any more."""


def stored_copy(gallery: object, platform: str) -> StoredCopy | None:
  """Returns the copy that lies beside a gallery, where streams to such a device may gain by it."""
  copy: StoredCopy | None = None
  if platform == "cpu" and not left_out():
    copy = getattr(gallery, "eight_bits", None)
  if copy is None or (copy.width > EXACT and quicker_kind() != "int8"):
    return None
  copy.check()
  return copy


class Trial:
  """Which of two ways is quicker, for searches of one kind: each is tried at first, and the slower one now and then."""

  def __init__(self) -> None:
    self._seconds: dict[Hashable, tuple[list[float], list[float]]] = {}
    self._calls: dict[Hashable, int] = {}

  def pick(self, kind: Hashable) -> bool:
    """Says whether the next search of a kind takes the second way."""
    one, other = self._seconds.setdefault(kind, ([], []))
    calls = self._calls[kind] = self._calls.get(kind, 0) + 1
    if min(len(one), len(other)) < TRIES:
      return len(other) <= len(one)
    second = statistics.median(other) < statistics.median(one)
    return second if calls % AGAIN else not second

  def quicker(self, kind: Hashable, way: Callable[[bool], Result]) -> Result:
    """Returns what the next search of a kind returns, which is told which way it takes."""
    second, start = self.pick(kind), time.perf_counter()
    found = way(second)
    self.tell(kind, second, time.perf_counter() - start)
    return found

  def tell(self, kind: Hashable, second: bool, seconds: float) -> None:
    """Notes how long a search took."""
    taken = self._seconds[kind][second]
    taken.append(seconds)
    del taken[:-KEPT]
