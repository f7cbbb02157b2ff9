"""What all measurements of speed share: random data, one timer, one watcher of memory."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from qat_jax.types import Adaptation

BLOCK_ROWS = 1 << 20  # rows drawn at once: float32 of one block must fit beside the whole array
SLOW = 1.0  # seconds: a function that takes longer runs twice, whatever `repeats` says


def make_gallery(items: int, width: int, dtype: str, seed: int = 1) -> jax.Array:
  """Returns random unit rows (ND) on the device."""
  block = min(items, BLOCK_ROWS)

  @functools.partial(jax.jit, donate_argnums=0)
  def with_block(gallery_ND: jax.Array, start: int, key: jax.Array) -> jax.Array:
    drawn_BD = jax.random.normal(key, (block, width))
    drawn_BD /= jnp.linalg.norm(drawn_BD, axis=1, keepdims=True)
    return jax.lax.dynamic_update_slice_in_dim(gallery_ND, drawn_BD.astype(dtype), start, 0)

  gallery_ND, key = jnp.zeros((items, width), dtype), jax.random.key(seed)
  for start in range(0, items, block):
    gallery_ND = with_block(gallery_ND, min(start, items - block), jax.random.fold_in(key, start) if start else key)
  return gallery_ND


def random_chunks(items: int, width: int, step: int = 1 << 16) -> Iterator[np.ndarray]:
  """Yields random unit rows in float16, at most `step` rows at a time, for galleries on disk."""
  for start in range(0, items, step):
    yield np.asarray(make_gallery(min(step, items - start), width, "float16", seed=start))


def make_adaptation(queries: int, width: int, rank: int, strengths_R: np.ndarray, seed: int = 0) -> Adaptation:
  """Returns T = I + Σ strength_i l_i r_iᵀ with random orthonormal l and r, and random unit queries.

  Args:
    queries: how many queries Q, each with a map of its own.
    width: the width D of features.
    rank: the rank R of a map beyond the identity.
    strengths_R: the singular values beyond the identity.
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)
  factors = np.linalg.qr(rng.standard_normal((2, queries, width, rank)))[0] * np.sqrt(strengths_R)
  query_QD = rng.standard_normal((queries, width))
  query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
  left_QDR, right_QDR = jnp.asarray(factors, jnp.float32)
  return Adaptation(jnp.asarray(query_QD, jnp.float32), jnp.ones((queries, 1)), left_QDR, right_QDR)


def seconds_in_turn(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
  """Returns the seconds of each run of each function; all run in turn, so that a busy machine slows all alike.

  The first round compiles and is not counted. A result on the device is waited for.
  """
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for turn in range(repeats + 1):
    for name, function in functions.items():
      if turn > 2 and seconds[name][-1] > SLOW:
        continue
      began = time.perf_counter()
      jax.block_until_ready(function())
      if turn:
        seconds[name].append(time.perf_counter() - began)
  return seconds


def free_port() -> int:
  """Returns a port of this machine that nobody listens on."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def watched_memory(every: float) -> Iterator[list[float]]:
  """Gives a list to which the megabytes of this process are added every so many seconds, and at both ends."""
  process, over = psutil.Process(), threading.Event()
  held = [process.memory_info().rss / 1e6]

  def watch() -> None:
    while not over.wait(every):
      held.append(process.memory_info().rss / 1e6)

  watcher = threading.Thread(target=watch)
  watcher.start()
  try:
    yield held
  finally:
    over.set()
    watcher.join()
    held.append(process.memory_info().rss / 1e6)
