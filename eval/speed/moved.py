"""What the compiled search programs read, write and compute, by XLA's own cost analysis: python -m eval.speed.moved.

Nothing is run, so no accelerator is needed: the code path of accelerators is compiled for this machine's CPU, for one
block of a gallery, and its bytes are divided by one reading of that block. A block's products count as written and read
again, though they may stay in an accelerator's cache; `without products` leaves them out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qat_jax.search import kernels
from qat_jax.search.bounds import Bounds


class Cost(NamedTuple):
  """What a program costs for each reading of the gallery."""

  readings: float  # bytes accessed, in readings of the gallery
  without_products: float  # the same where a block's products stay in the cache
  operations: float  # floating-point operations, a query and item
  product_bytes: int  # of a block


def filter_program(
  width: int, queries: int, directions: int, dtype: str, rows: int = kernels.BLOCK_ROWS_ELSEWHERE, gated: bool = False
) -> tuple[Callable, tuple]:
  """Returns what bounds every item of a block, and the shapes of its arguments.

  For maps that keep so many directions; `gated`: with a gate an entry.
  """
  shape: Any = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  bounds = Bounds(
    columns=shape(width, queries * (1 + directions)),
    weight=shape(directions, queries),
    square=shape(width, queries) if gated else None,
    floor=(each_Q := shape(queries)),
    cut=each_Q,
    longest=each_Q,
    slack=each_Q,
    numerator_slack=each_Q,
    most=each_Q,
  )
  gallery_ND, start = jax.ShapeDtypeStruct((rows, width), jnp.dtype(dtype)), jax.ShapeDtypeStruct((), jnp.int32)
  filter_ = functools.partial(inspect.unwrap(kernels._upper_bounds), wanted_N=None, rows=rows, block=rows)
  return filter_, (bounds, gallery_ND, start, shape(2), jax.ShapeDtypeStruct((2,), jnp.int32))


def filter_cost(
  width: int, queries: int, directions: int, dtype: str, rows: int = kernels.BLOCK_ROWS_ELSEWHERE, gated: bool = False
) -> Cost:
  """Returns what bounding every item costs, for maps that keep so many directions; `gated`: with a gate an entry."""
  filter_, arguments = filter_program(width, queries, directions, dtype, rows, gated)
  with _as_accelerators():
    cost = jax.jit(filter_).lower(*arguments).compile().cost_analysis()
  assert cost is not None  # CPUs have it
  moved = cost["bytes accessed"]
  read = rows * width * jnp.dtype(dtype).itemsize
  products = 4 * rows * queries * (1 + directions) * (1 if dtype == "float32" else 3)
  return Cost(moved / read, (moved - 2 * products) / read, cost["flops"] / (rows * queries), products)


@contextlib.contextmanager
def _as_accelerators() -> Iterator[None]:
  with unittest.mock.patch.object(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args)):
    yield


def main() -> None:
  """Prints a row for each kind of gallery, number of queries and of directions."""
  parser = argparse.ArgumentParser(description="What the compiled search programs move and compute.")
  parser.add_argument("--width", type=int, default=768)
  flags = parser.parse_args()
  print(f"D = {flags.width}, blocks of {kernels.BLOCK_ROWS_ELSEWHERE} rows; bytes in readings of the gallery\n")
  print(
    "| gallery | Q | directions | bytes | without products | operations a query and item | products of a block, MB |"
  )
  print("|---|---|---|---|---|---|---|")
  for dtype in ("float32", "bfloat16"):
    for queries in (1, 8, 64):
      for directions in (0, 2, 4):
        cost = filter_cost(flags.width, queries, directions, dtype)
        print(
          f"| {dtype} | {queries} | {directions} | {cost.readings:.2f} | {cost.without_products:.2f} | "
          f"{cost.operations:,.0f} | {cost.product_bytes / 1e6:.1f} |"
        )
    cost = filter_cost(flags.width, 8, 0, dtype, gated=True)
    print(f"| {dtype}, a gate an entry | 8 | 0 | {cost.readings:.2f} | | {cost.operations:,.0f} | |")


if __name__ == "__main__":
  main()
