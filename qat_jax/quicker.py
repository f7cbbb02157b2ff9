"""Whether this machine multiplies narrow numbers faster than float32: tried once a process and kind, in milliseconds.

Processors and releases of XLA differ: some have instructions for 8 bits or bfloat16, some write such products out in
float32, some refuse them.
"""

from __future__ import annotations

import functools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 127  # of 8 bits; bfloat16 holds it exactly, and float32 the sums of its products
TURNS = 6


@functools.cache
def multiplies_faster(kind: str, sums: str, shape: tuple[int, int, int], share: float = 1.0) -> bool:
  """Says whether a CPU's products of a kind take less than a share of float32's time, and are right.

  Some processors add products of 8 bits in 16, and stop at the largest number that these hold: the largest values show
  whether a library uses them.

  Args:
    kind: of the factors' numbers, such as "int8".
    sums: the kind of the products' sums.
    shape: rows and inner dimension of the left factor, and columns of the right one.
    share: of float32's time.
  """
  found: list[bool] = []
  # a thread of its own: a caller may be traced, and would only note down what is to be timed
  thread = threading.Thread(target=lambda: found.append(_faster(kind, sums, shape, share)))
  thread.start()
  thread.join()
  return found == [True]


def _faster(kind: str, sums: str, shape: tuple[int, int, int], share: float) -> bool:
  rows, inner, columns = shape
  product = jax.jit(lambda x, y, kind: jnp.matmul(x, y, preferred_element_type=kind), static_argnums=2)
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    operands = [[jnp.full(x, LARGEST, kind) for x in ((rows, inner), (inner, columns))] for kind in ("float32", kind)]
    seconds: tuple[list[float], list[float]] = ([], [])
    try:
      for _ in range(TURNS):
        for both, kind_of_sums, taken in zip(operands, ("float32", sums), seconds, strict=True):
          start = time.perf_counter()
          result = jax.block_until_ready(product(*both, kind_of_sums))
          taken.append(time.perf_counter() - start)
    except RuntimeError:  # some releases cannot do it at all
      return False
    exact = (np.asarray(result, np.float64) == inner * LARGEST**2).all()
  return bool(exact and min(seconds[1][1:]) < share * min(seconds[0][1:]))  # the first ones compile
