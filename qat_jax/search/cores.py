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


class _OneCore:
  """Keeps NumPy's linear algebra to the core that calls it.

  OpenBLAS's threads go on looking for work, at full speed, for some hundredths of a second after each product: XLA's
  programs that come next would share the cores with them.
  """

  def __init__(self) -> None:
    self._inside, self._lock, self._limits = 0, threading.Lock(), contextlib.ExitStack()

  @contextlib.contextmanager
  def __call__(self) -> Iterator[None]:
    """Within it no call has threads of its own; what the process had before is put back as the last one leaves."""
    with self._lock:
      if not self._inside:
        self._limits.enter_context(_linear_algebra().limit(limits=1))
      self._inside += 1
    try:
      yield
    finally:
      with self._lock:
        self._inside -= 1
        if not self._inside:
          self._limits.close()


one_core = _OneCore()


@functools.cache
def _linear_algebra() -> threadpoolctl.ThreadpoolController:
  return threadpoolctl.ThreadpoolController().select(user_api="blas")


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(cores(), "qat_jax.search")


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of the threads
