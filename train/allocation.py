"""Keeps the memory that a training step frees for the next step, where the C library is glibc.

XLA on a CPU requests its scratch memory at every step, tens of megabytes in one piece. glibc maps such a piece for each
request and unmaps it afterwards, so every page is faulted in at every step: a fifth of a step's processor time. An
environment variable (MALLOC_…) would do the same for the whole program, which costs 0.7 GB more with a memory beside a
head, because large pieces that are freed only once would stay too.
"""

import contextlib
import ctypes
from collections.abc import Iterator

TRIM, MAPPED_FROM, MAPPED, ARENAS = -1, -3, -4, -8  # of malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, …
KEPT = 1 << 30  # bytes that may stay free at the end of the heap


def one_heap() -> None:
  """Makes all threads share one heap, the only kind for such large pieces; call it before there are any threads."""
  _set({ARENAS: 1})


@contextlib.contextmanager
def freed_is_kept() -> Iterator[None]:
  """Keeps freed memory in the heap while the block runs; does nothing if the C library is not glibc."""
  _set({MAPPED: 0, TRIM: KEPT})
  try:
    yield
  finally:
    _set(
      {MAPPED: 1 << 16, MAPPED_FROM: 1 << 25, TRIM: 1 << 26}
    )  # the values that glibc reaches by itself with large pieces
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
      ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> None:
  tune = getattr(ctypes.CDLL(None), "mallopt", None)
  if tune is not None:
    for parameter, value in values.items():
      tune(parameter, value)
