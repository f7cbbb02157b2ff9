"""A gallery, wherever it lies, as parts on devices: windows of what is there already, else chunk by chunk.

While one chunk is computed with, a thread reads the next and sends it to its device; no more than two are alive.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import power_of_two
from qat_jax.search.bounds import UNIT
from qat_jax.search.coarse import AFTER, Coarse, Trial, copied, wanted
from qat_jax.types import ArrayGallery, Gallery, Pieces

COUNTABLE = (1 << 31) - 1  # bounds whose places 32 bits hold
SQUARED = 1 << 30  # numbers of a gallery that are squared at once
WINDOW = {"cpu": 1 << 23}  # upper bounds (rows of a device array × queries) that are held at once
WINDOW_ELSEWHERE = 1 << 26  # where a look at them has to be waited for
CHUNK_BYTES = {"cpu": 1 << 24}  # of float32: what is sent to a device at once
CHUNK_BYTES_ELSEWHERE = 1 << 27
LENGTH_ERROR = 0.02  # of |z|²; bf16 rounding stays below it

Tree = TypeVar("Tree")  # of arrays

# one thread for all: each new one would bring a memory pool of its own, which keeps what chunks leave behind
_reader = concurrent.futures.ThreadPoolExecutor(1, "gallery-reader")


@dataclasses.dataclass(frozen=True)
class Part:
  """Some consecutive items of a gallery, as rows of an array on one device."""

  first: int  # position of the first item
  items: int
  features: jax.Array  # ND; the items are rows from `offset` on
  offset: int
  window: int  # how many rows are looked at: few numbers of them, so that few shapes are compiled for
  lengths: np.ndarray  # the least and the greatest |z|²
  wanted: np.ndarray | None = None  # bool, which of the items may be found
  coarse: Coarse | None = None  # an 8-bit copy of the features' rows
  trial: Trial | None = None  # of float32 against that
  # by the key of a map: what it makes of the squared lengths of the array's rows; None where arrays come and go
  squares: dict[str, jax.Array] | None = None

  @property
  def skipped(self) -> int:
    """Returns how many rows of the window come before the first item."""
    return max(0, self.offset + self.window - len(self.features))

  @property
  def device(self) -> jax.Device:
    """The device that the rows lie on."""
    return next(iter(self.features.devices()))

  @property
  def platform(self) -> str:
    """Returns `cpu`, `gpu`, …"""
    return self.device.platform

  def placed(self, tree: Tree) -> Tree:
    """Returns a pytree of arrays where programs read them beside the rows: on a CPU, as they are."""
    return tree if self.platform == "cpu" else jax.device_put(tree, self.device)

  def rows(self, item_B: np.ndarray) -> np.ndarray:
    """Returns some of the items (BD, float32), on the host."""
    if self.platform == "cpu":  # no copy of the whole
      return np.asarray(np.take(np.asarray(self.features), self.offset + item_B, axis=0), np.float32)
    place_B = np.pad(self.offset + item_B, (0, power_of_two(len(item_B)) - len(item_B)))  # few shapes to compile for
    return np.asarray(jnp.take(self.features, place_B, axis=0), np.float32)[: len(item_B)]


def parts(
  gallery: Gallery, devices: Sequence[jax.Device] | None, chunk_rows: int | None, queries: int
) -> Iterator[Part]:
  """Yields the gallery's parts for so many queries at once, in order on each device.

  A device array is used where it lies, its rows sharded or not; anything else is streamed to `devices`, chunk by chunk
  in turn. Raises ValueError that names the first item that is NaN, infinite or not of unit length.
  """
  array = gallery.array if isinstance(gallery, ArrayGallery) else None
  if isinstance(gallery, Pieces):
    yield from _of_pieces(gallery, queries)
  elif isinstance(array, jax.Array) and devices is None and chunk_rows is None:
    window = WINDOW.get(next(iter(array.devices())).platform, WINDOW_ELSEWHERE)
    yield from _windows(array, max(1, window // queries))
  else:
    most = COUNTABLE // queries
    yield from _streamed(gallery, devices or [jnp.zeros(()).device], chunk_rows and min(chunk_rows, most))


def shards(array_ND: jax.Array) -> list[tuple[int, jax.Array]]:
  """Returns the parts of a device array with the position of their first row; raises ValueError for split columns."""
  found = sorted({shard.index[0].start or 0: shard.data for shard in array_ND.addressable_shards}.items())
  if sum(len(data) for _, data in found) != len(array_ND) or found[0][1].shape[1] != array_ND.shape[1]:
    raise ValueError(f"the gallery is sharded as {array_ND.sharding}; shard its rows, PartitionSpec('gallery', None)")
  return found


def device_count(gallery: Gallery, devices: Sequence[jax.Device] | None) -> int:
  """Returns on how many devices the parts lie."""
  array = gallery.array if isinstance(gallery, ArrayGallery) else None
  return len(devices or (array.devices() if isinstance(array, jax.Array) else [None]))


def in_place(gallery: Gallery) -> list[Part] | None:
  """Returns what of a gallery lies on each device, or in each piece; None where it has to be streamed."""
  if isinstance(gallery, Pieces):
    pieces = zip(gallery.starts, gallery.arrays, gallery.counts, strict=False)
    return [
      dataclasses.replace(part, first=int(first), items=count)
      for first, array, count in pieces
      for part in whole_shards(array)
    ]
  array = gallery.array if isinstance(gallery, ArrayGallery) else None
  return whole_shards(array) if isinstance(array, jax.Array) else None


def whole_shards(array_ND: jax.Array) -> list[Part]:
  """Returns what of a device array lies on each of its devices; raises as `parts` does."""
  known = _of(array_ND)
  each = zip(shards(array_ND), known.lengths, known.squares, strict=True)
  return [Part(first, len(data), data, 0, len(data), pair, squares=own) for (first, data), pair, own in each]


def _windows(array_ND: jax.Array, rows: int) -> Iterator[Part]:
  """Yields what of a device array lies on each device, with its 8-bit copy, so many rows at a time."""
  both = zip(whole_shards(array_ND), _copies(array_ND), strict=True)
  whole = [dataclasses.replace(part, coarse=copy, trial=_of(array_ND).trial) for part, copy in both]
  for offset in range(0, max(part.items for part in whole), rows):
    for part in whole:
      items = min(rows, part.items - offset)
      if items > 0:
        window = min(rows, part.items)
        yield dataclasses.replace(part, first=part.first + offset, items=items, offset=offset, window=window)


def _of_pieces(gallery: Pieces, queries: int) -> Iterator[Part]:
  """Yields the parts of each piece, without its padding: the program of a window is that of the padded array."""
  for first, array, count, alive_N in zip(gallery.starts, gallery.arrays, gallery.counts, gallery.alive, strict=False):
    window = WINDOW.get(next(iter(array.devices())).platform, WINDOW_ELSEWHERE)
    for part in _windows(array, max(1, window // queries)):
      items = min(part.items, count - part.offset)
      if items > 0:
        wanted_N = alive_N[part.offset : part.offset + items]
        yield dataclasses.replace(part, first=int(first) + part.first, items=items, wanted=wanted_N)


def _streamed(gallery: Gallery, devices: Sequence[jax.Device], chunk_rows: int | None) -> Iterator[Part]:
  rows = chunk_rows or rows_of_chunk(gallery.width, devices[0])
  rows = min(rows, max(256, 1 << (len(gallery) - 1).bit_length()))
  starts = range(0, len(gallery), rows)

  def read(i: int) -> tuple[Part, jax.Array]:
    view_ND = gallery[starts[i] : starts[i] + rows]
    items, device = len(view_ND), devices[i % len(devices)]
    if items < rows:  # repeats of the last row, so that a shape is compiled for once
      view_ND = np.concatenate([view_ND, np.broadcast_to(view_ND[-1:], (rows - items, view_ND.shape[1]))])
    chunk_ND = jax.device_put(view_ND if isinstance(view_ND, jax.Array) else np.array(view_ND), device)
    release(view_ND)
    return Part(starts[i], items, chunk_ND, 0, rows, np.ones(2, np.float32)), squares(chunk_ND)

  for part, square_N in ahead(read, len(starts)):
    yield dataclasses.replace(
      part, lengths=check_lengths(np.asarray(square_N)[: part.items], part.first, gallery.width)
    )


def ahead(read: Callable[[int], Tree], count: int) -> Iterator[Tree]:
  """Yields what `read` returns for 0, 1, …, each read while the one before it is computed with."""
  coming = _reader.submit(read, 0)
  for i in range(count):
    found = coming.result()
    if i + 1 < count:
      coming = _reader.submit(read, i + 1)
    yield found


def rows_of_chunk(width: int, device: jax.Device) -> int:
  """Returns how many rows are streamed to a device at once."""
  chunk_bytes = CHUNK_BYTES.get(device.platform, CHUNK_BYTES_ELSEWHERE)
  return max(256, 1 << (chunk_bytes // (4 * width)).bit_length() - 1)


def check_lengths(square_N: np.ndarray, position: int | np.ndarray, width: int) -> np.ndarray:
  """Returns the least and the greatest |z|² (float32), a little apart, of items at `position`: the first's, or each's.

  Raises ValueError that names the first item whose |z|² is not finite, or not 1.
  """
  bad_N = ~(np.abs(square_N - 1) < LENGTH_ERROR)
  if not bad_N.any():
    apart = 1e-5 + 2 * width * UNIT  # a float32 sum of squares, in any order, is off by half as much at most
    return np.array([square_N.min(initial=1) * (1 - apart), square_N.max(initial=1) * (1 + apart)], np.float32)
  row = int(np.argmax(bad_N))
  name = position + row if isinstance(position, int) else position[row]
  length = float(np.sqrt(square_N[row]))
  if not np.isfinite(length):
    raise ValueError(f"gallery item {name} is NaN or infinite ({bad_N.sum()} bad items seen); leave such items out")
  raise ValueError(
    f"gallery item {name} has length {length:.4g}, wanted 1 ({bad_N.sum()} such items seen); "
    "normalise the gallery: adapter.prepare(gallery), or qat_jax.adaptation.normalise(gallery)"
  )


def release(view: object) -> bool:
  """Gives the memory of a read-only memory map back, and says whether it is one; the system caches its pages."""
  base = view
  while isinstance(base, np.ndarray) and base.base is not None and not base.flags.writeable:
    base = base.base
  if not isinstance(base, mmap.mmap) or not hasattr(base, "madvise"):
    return False
  base.madvise(mmap.MADV_DONTNEED)
  return True


@jax.jit
def squares(gallery_ND: jax.Array) -> jax.Array:
  """Returns the features' squared lengths (N, float32).

  A large gallery is read in blocks: in one piece a GPU wanted room for four copies of it.
  """
  rows = min(len(gallery_ND), max(1, SQUARED // gallery_ND.shape[1]))
  lengths = lambda block_BD: jnp.sum(jnp.square(block_BD.astype(jnp.float32)), axis=1)
  if rows == len(gallery_ND):
    return lengths(gallery_ND)

  def block(i: jax.Array, found_N: jax.Array) -> jax.Array:
    start = i * rows  # of the last one: moved back within the gallery, when it is read and when it is written
    return jax.lax.dynamic_update_slice(
      found_N, lengths(jax.lax.dynamic_slice_in_dim(gallery_ND, start, rows)), (start,)
    )

  return jax.lax.fori_loop(0, -(-len(gallery_ND) // rows), block, jnp.zeros(len(gallery_ND)))


@dataclasses.dataclass
class _Known:
  """What is known of a device array, which cannot change."""

  reference: weakref.ref
  lengths: list[np.ndarray]  # of each shard, checked: the least and the greatest |z|²
  squares: list[dict[str, jax.Array]]  # of each shard
  searches: int = 0
  copies: list[Coarse] | None = None  # of each shard
  trial: Trial = dataclasses.field(default_factory=Trial)
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_known: dict[int, _Known] = {}


def _of(array_ND: jax.Array) -> _Known:
  name = id(array_ND)
  if name not in _known:
    width = array_ND.shape[1]
    pairs = [check_lengths(np.asarray(squares(data)), start, width) for start, data in shards(array_ND)]
    _known[name] = _Known(weakref.ref(array_ND, lambda _: _known.pop(name, None)), pairs, [{} for _ in pairs])
  return _known[name]


def _copies(array_ND: jax.Array) -> Sequence[Coarse | None]:
  """Returns the 8-bit copy of each shard; None where there is none, for want of searches or of use."""
  known, data = _of(array_ND), [data for _, data in shards(array_ND)]
  known.searches += 1
  if next(iter(array_ND.devices())).platform != "cpu" or not wanted(array_ND, known.searches):
    return [None] * len(data)
  with known.lock:
    if known.copies is None:
      known.copies = [copied(x) for x in data]
  return known.copies


def know_copy(array_ND: jax.Array, copy: Coarse) -> None:
  """Lets searches of an array on one device use a copy that was made before."""
  known = _of(array_ND)
  known.copies, known.searches = [copy], AFTER


def expect_searches(gallery: Gallery) -> None:
  """Makes what many searches of arrays on devices will use."""
  arrays = gallery.arrays if isinstance(gallery, Pieces) else [getattr(gallery, "array", None)]
  for array in arrays:
    if isinstance(array, jax.Array):
      _of(array).searches = AFTER
      _copies(array)
