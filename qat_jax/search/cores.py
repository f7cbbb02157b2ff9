"""A CPU's cores side by side: NumPy, and XLA's programs of small products, keep to one of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import threadpoolctl

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


_limiting = threading.Lock()


@contextlib.contextmanager
def one_core() -> Iterator[None]:
  """Keeps NumPy's linear algebra to the core that calls it, and puts back what the process had before.

  OpenBLAS's threads go on looking for work, at full speed, for some hundredths of a second after each product: XLA's
  programs that come next would share the cores with them. The limit is the whole process's, and only the thread that
  set it may put it back. So one thread sets it at a time; others, meanwhile, set none.
  """
  if not _limiting.acquire(blocking=False):
    yield
    return
  try:
    with _linear_algebra().limit(limits=1):
      yield
  finally:
    _limiting.release()


@functools.cache
def _linear_algebra() -> threadpoolctl.ThreadpoolController:
  return threadpoolctl.ThreadpoolController().select(user_api="blas")


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(cores(), "qat_jax.search")


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of the threads
