"""Memory that a step frees is kept for the next one: the C library would give it back, and the kernel clear it anew.

XLA's CPU asks for its scratch memory at every step, tens of megabytes in one piece. glibc maps such a piece for each
request and unmaps it, so that every page of it is faulted in at every step: a sixth of a training step's time.
"""

from __future__ import annotations

import ctypes

TRIM, MAPPED, ARENAS = -1, -4, -8  # of malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
KEPT = 1 << 30  # bytes that are free at the end of the heap


def keep_freed() -> None:
  """Has this process keep memory that is freed, up to `KEPT` bytes; before it has threads. Nothing without glibc."""
  tune = getattr(ctypes.CDLL(None), "mallopt", None)
  if tune is not None:
    for parameter, value in ((ARENAS, 1), (MAPPED, 0), (TRIM, KEPT)):
      tune(parameter, value)
