"""A gallery, wherever it lies, as parts on a device: whole where it is there already, else chunk by chunk.

While one chunk is computed with, a thread reads the next and sends it to its device; no more than two are alive.
"""

from __future__ import annotations

import concurrent.futures
import mmap
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.search.two_pass import as_float, squares

CHUNK_BYTES = {"cpu": 1 << 22}  # of float32: what a cache holds; elsewhere, what a transfer is worth
CHUNK_BYTES_ELSEWHERE = 1 << 26
GATHER_ROWS = 16  # a touched row of a memory map brings its neighbours into memory, up to two megabytes
RESIDENT = {"cpu": ("float32",)}  # device arrays that are used where they lie: a CPU multiplies no half precision
RESIDENT_ELSEWHERE = ("float32", "float16", "bfloat16")
LENGTH_ERROR = 0.02  # of |z|²; bf16 rounding stays below it


# one thread for all: each new one would bring a memory pool of its own, which keeps what chunks leave behind
_reader = concurrent.futures.ThreadPoolExecutor(1, "gallery-reader")


class Part(NamedTuple):
  """Some consecutive rows of the gallery on one device."""

  start: int
  items: int  # rows that are items; the others are padding
  features: jax.Array  # ND
  square: jax.Array  # N, |z|²


class Resident:
  """A device array, whole on one device or its rows sharded over several."""

  def __init__(self, gallery_ND: jax.Array) -> None:
    shards = {shard.index[0].start or 0: shard.data for shard in gallery_ND.addressable_shards}
    if (
      sum(len(data) for data in shards.values()) != len(gallery_ND)
      or next(iter(shards.values())).shape[1] != gallery_ND.shape[1]
    ):
      raise ValueError(
        f"the gallery is sharded as {gallery_ND.sharding}; shard its rows, PartitionSpec('gallery', None)"
      )
    self.shards = sorted(shards.items())
    self.squares = _squares(gallery_ND, self.shards)

  @property
  def longest(self) -> int:
    """The rows of the longest part."""
    return max(len(data) for _, data in self.shards)

  def parts(self, rows: int | None = None) -> Iterator[Part]:
    """Yields the shards, or at most `rows` rows of one at a time."""
    for (first, data), square_N in zip(self.shards, self.squares, strict=True):
      if rows is None or len(data) <= rows:
        yield Part(first, len(data), data, square_N)
        continue
      for start in range(0, len(data), rows):
        part_ND, square = data[start : start + rows], square_N[start : start + rows]
        yield Part(first + start, len(part_ND), part_ND, square)

  def rows(self, positions: jax.Array | np.ndarray) -> jax.Array:
    """Returns items by position (QKD); −1 gives any item."""
    if len(self.shards) == 1:
      return _take(self.shards[0][1], positions)
    position_QK = np.maximum(np.asarray(positions), 0)
    item_QKD = np.empty((*position_QK.shape, self.shards[0][1].shape[1]), np.float32)
    for start, data in self.shards:
      here_QK = (position_QK >= start) & (position_QK < start + len(data))
      item_QKD[here_QK] = np.asarray(data[position_QK[here_QK] - start])
    return jnp.asarray(item_QKD)


class Streamed:
  """Anything that gives rows when sliced or indexed: NumPy arrays, memory maps, FeatureStores, half-precision."""

  def __init__(self, gallery: Any, devices: Sequence[jax.Device], chunk_rows: int | None = None) -> None:
    self.gallery, self.devices = gallery, devices
    width = gallery.width if hasattr(gallery, "width") else gallery.shape[1]
    chunk_bytes = CHUNK_BYTES.get(devices[0].platform, CHUNK_BYTES_ELSEWHERE)
    self.chunk_rows = chunk_rows or max(256, 1 << (chunk_bytes // (4 * width)).bit_length() - 1)

  @property
  def longest(self) -> int:
    """The rows of the longest part."""
    return self.chunk_rows

  def parts(self, rows: int | None = None) -> Iterator[Part]:
    """Yields chunks, the next one always under way; over several devices in turn.

    Raises ValueError that names the first row that is NaN, infinite or not of unit length.
    """
    rows = min(rows or self.chunk_rows, self.chunk_rows, max(256, 1 << (len(self.gallery) - 1).bit_length()))
    starts = range(0, len(self.gallery), rows)
    coming = _reader.submit(self._read, 0, rows, 0)
    for i in range(len(starts)):
      part = coming.result()
      if i + 1 < len(starts):
        coming = _reader.submit(self._read, starts[i + 1], rows, i + 1)
      check_lengths(np.asarray(part.square)[: part.items], part.start)
      yield part

  def rows(self, positions: jax.Array | np.ndarray) -> jax.Array:
    """Returns items by position (QKD, float32); −1 gives any item."""
    position_QK = np.maximum(np.asarray(positions), 0)
    flat, pieces = position_QK.ravel(), []
    rows = GATHER_ROWS if release(self.gallery[:1]) else len(flat)
    for start in range(0, len(flat), rows):
      pieces.append(np.asarray(self.gallery[flat[start : start + rows]]))
      release(self.gallery[:1])
    return jnp.asarray(np.concatenate(pieces)).astype(jnp.float32).reshape(*position_QK.shape, -1)

  def _read(self, start: int, rows: int, turn: int) -> Part:
    view_ND = self.gallery[start : start + rows]
    count = len(view_ND)
    device = self.devices[turn % len(self.devices)]
    if isinstance(view_ND, jax.Array):
      return Part(start, count, *as_float(jax.device_put(jnp.pad(view_ND, ((0, rows - count), (0, 0))), device)))
    chunk_ND = np.zeros((rows, view_ND.shape[1]), view_ND.dtype)
    chunk_ND[:count] = view_ND
    release(view_ND)
    return Part(start, count, *as_float(jax.device_put(chunk_ND, device)))


def open_gallery(gallery: Any, devices: Sequence[jax.Device] | None, chunk_rows: int | None) -> Resident | Streamed:
  """Returns the gallery as parts; `devices` are for galleries that do not lie on devices, one by default."""
  if isinstance(gallery, jax.Array) and chunk_rows is None and devices is None:
    platform = next(iter(gallery.devices())).platform
    if gallery.dtype.name in RESIDENT.get(platform, RESIDENT_ELSEWHERE):
      return Resident(gallery)
  return Streamed(gallery, devices or [jnp.zeros(()).device], chunk_rows)


def check_lengths(square_N: np.ndarray, start: int) -> None:
  """Raises ValueError that names the first item whose |z|² is not finite, or not 1."""
  bad_N = ~(np.abs(square_N - 1) < LENGTH_ERROR)
  if not bad_N.any():
    return
  row = int(np.argmax(bad_N))
  length = float(np.sqrt(square_N[row]))
  if not np.isfinite(length):
    raise ValueError(
      f"gallery item {start + row} is NaN or infinite ({bad_N.sum()} bad items seen); leave such items out"
    )
  raise ValueError(
    f"gallery item {start + row} has length {length:.4g}, wanted 1 ({bad_N.sum()} such items seen); "
    "normalise the gallery: adapter.prepare(gallery), or qat_jax.adaptation.normalise(gallery)"
  )


def release(view: Any) -> bool:
  """Gives the memory of a read-only memory map back, and says whether it is one; the system caches its pages."""
  base = view
  while isinstance(base, np.ndarray) and base.base is not None and not base.flags.writeable:
    base = base.base
  if not isinstance(base, mmap.mmap) or not hasattr(base, "madvise"):
    return False
  base.madvise(mmap.MADV_DONTNEED)
  return True


_known: dict[int, tuple[weakref.ref, list[jax.Array]]] = {}


def _squares(gallery_ND: jax.Array, shards: list[tuple[int, jax.Array]]) -> list[jax.Array]:
  """Returns |z|² of each shard, checked; computed once for each array, which cannot change."""
  if id(gallery_ND) not in _known:
    found = [squares(data) for _, data in shards]
    for (start, _), square_N in zip(shards, found, strict=True):
      check_lengths(np.asarray(square_N), start)
    name = id(gallery_ND)
    _known[name] = weakref.ref(gallery_ND, lambda _: _known.pop(name, None)), found
  return _known[id(gallery_ND)][1]


@jax.jit
def _take(gallery_ND: jax.Array, position_QK: jax.Array) -> jax.Array:
  return gallery_ND[jnp.maximum(position_QK, 0)].astype(jnp.float32)
