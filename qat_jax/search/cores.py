"""A CPU's cores side by side: NumPy, and XLA's programs of small products, keep to one of them."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def cores() -> int:
  """Returns how many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_cores(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
  """Returns the function of each piece, in their order. The function must not call `on_cores` itself."""
  if min(len(pieces), cores()) == 1:
    return [function(piece) for piece in pieces]
  return list(_pool().map(function, pieces))


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(cores(), "qat_jax.search")


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of the threads
