"""A collection that changes → services that do not: each is a snapshot, and the next takes its place.

A snapshot shares with the one before the arrays of all blocks that have not changed. Blocks come in few sizes, and what
searches of a size need is compiled before a block of that size is shown: a search compiles nothing.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from qat_jax.adapter import Adapter
from qat_jax.search.gallery import expect_searches
from qat_jax.search.index import Index
from qat_jax.serve.collected import Collected
from qat_jax.serve.collection.blocks import SIZES as CAPACITIES
from qat_jax.serve.collection.blocks import Block, capacity_of
from qat_jax.serve.collection.collection import Collection
from qat_jax.serve.encoding import SIZES
from qat_jax.serve.opening import index_of
from qat_jax.serve.service import Service
from qat_jax.types import ArrayGallery, Pieces

PREPARED_ROWS = 1024  # that a head maps at once, always: other shapes would round otherwise
ENDING = 2.0  # seconds that a thread has
PAUSE = 0.1  # seconds between two looks for changes
INDEXED = 1 << 16  # rows of a block that gets an index, at least

_log = logging.getLogger("qat_jax.serve")


class Living:
  """The service of a collection, made anew after changes by a thread of its own.

  It answers as soon as it has compiled for one query at once; what more queries at once need is compiled meanwhile.
  """

  def __init__(
    self,
    collection: Collection,
    template: Service,
    show: Callable[[Service], Any],
    allow: Callable[[int], Any] = lambda queries: None,
    dtype: Any = jnp.float32,
    index: str = "exact",
  ) -> None:
    """Takes what services are made of.

    Args:
      collection: what is shown.
      template: a service with the adapter, the encoder and the pictures, of any items.
      show: takes each new service.
      allow: is told how many queries may be searched at once, whenever that grows.
      dtype: of arrays on the device.
      index: what large blocks get, as `opening.INDEXES` has it.
    """
    self.collection, self.template, self.show, self.allow, self.dtype = collection, template, show, allow, dtype
    self.index = index
    self._indexes: dict[int, tuple[np.ndarray, dict[str, Index]]] = {}  # of the rows of large blocks, by space
    self.spaces = {name: head.space for name, head in template.adapter.heads.items()}
    self.batches: Sequence[int] = SIZES[:1]  # of queries, that are compiled for
    self._arrays: dict[int, tuple[np.ndarray, dict[str, jax.Array]]] = {}  # of the rows of blocks
    self._warm: set[tuple[int, int]] = set()  # capacities of blocks, and batches
    self._lock, self._stop = threading.Lock(), threading.Event()
    self._shown = -1
    self._threads: list[threading.Thread] = []

  def start(self) -> None:
    """Shows the first service, and goes on in threads."""
    self.publish()
    self.allow(self.batches[-1])
    for name, work in (("collection", self._run), ("compiling", self._compile), ("indexing", self._index)):
      self._threads.append(threading.Thread(target=work, name=name, daemon=True))
      self._threads[-1].start()

  def stop(self) -> bool:
    """Ends the threads, and says whether they have ended: one that compiles takes long."""
    self._stop.set()
    for thread in self._threads:
      thread.join(ENDING)
    return not any(thread.is_alive() for thread in self._threads)

  def adapt(self, template: Service) -> None:
    """Takes another adapter: compiles for it and prepares all items, and then shows it."""
    other = Living(self.collection, template, lambda service: None, dtype=self.dtype)
    other.batches = self.batches
    other.publish()
    with self._lock:
      self.template, self.spaces, self._arrays, self._warm = template, other.spaces, other._arrays, other._warm
      self._indexes = {}
    self.publish()

  def publish(self) -> None:
    """Shows the collection as it is now."""
    with self._lock:
      changes, blocks = self.collection.snapshot()
      for capacity in sorted({block.capacity for block in blocks} | {CAPACITIES[0]}):
        self._warm_for(capacity, self.batches)
      before = self._arrays
      placed = lambda rows: before.get(id(rows)) or (rows, self._placed(self.template.adapter, rows))
      self._arrays = {id(block.rows): placed(block.rows) for block in blocks}
      self._indexes = {key: one for key, one in self._indexes.items() if key in self._arrays}
      self.show(self._service(blocks, [arrays for _, arrays in self._arrays.values()]))
      self._shown = changes

  @property
  def is_settled(self) -> bool:
    """Whether all changes are shown."""
    return self._shown >= self.collection.changes

  def _run(self) -> None:
    while not self._stop.wait(PAUSE):
      try:
        self.collection.read_on()
        if self.is_settled:
          continue
        self.publish()
        if self.collection.wants_compacting:
          threading.Thread(target=self._compact, name="compacting", daemon=True).start()
      except Exception:
        _log.exception("the collection's changes could not be shown; they are kept")
        self._stop.wait(1)

  def _compact(self) -> None:
    try:
      self.collection.compact()
    except OSError as error:
      _log.error("the collection could not be compacted, its logs stay: %s", error)

  def _index(self) -> None:
    """Makes an index of each large block, one after another; until it is there, the block is searched exactly."""
    while self.index != "exact" and not self._stop.wait(PAUSE):
      with self._lock:
        spaces, arrays = set(self.spaces.values()), self._arrays
        left = [key for key, (rows, _) in arrays.items() if len(rows) >= INDEXED and key not in self._indexes]
      for key in left[:1]:
        rows, of_space = arrays[key]
        try:
          made = {space: index_of(self.index, ArrayGallery(of_space[space][: len(rows)], space)) for space in spaces}
        except Exception:
          _log.exception("a block's index could not be made; the block is searched exactly")
          self._stop.wait(60)
          continue
        with self._lock:
          if arrays[key] is self._arrays.get(key) and spaces == set(self.spaces.values()):
            self._indexes[key] = rows, made
        self.publish()

  def _compile(self) -> None:
    """Compiles ahead: for more queries at once, for words, and for the next capacity of blocks before there is one."""
    while not self._stop.wait(PAUSE):
      with contextlib.suppress(Exception):  # which the next publication tells
        self._compile_next()

  def _compile_next(self) -> None:
    capacities = sorted({capacity for capacity, _ in self._warm})
    if len(self.batches) < len(SIZES):
      more = SIZES[: len(self.batches) + 1]
      for capacity in capacities:
        self._warm_for(capacity, more)
      with self._lock:
        for capacity in {capacity for capacity, _ in self._warm}:
          self._warm_for(capacity, more)
        self.batches = more
      self.allow(more[-1])
    elif len(self.collection) > capacities[-1] and capacities[-1] < CAPACITIES[-1]:
      self._warm_for(CAPACITIES[CAPACITIES.index(capacities[-1]) + 1], self.batches)
    else:
      for capacity in capacities:
        for size in self.batches:
          if (capacity, -size) not in self._warm and not self._stop.is_set():
            self._dummy(capacity).warm_words(size)
            self._warm.add((capacity, -size))

  def _warm_for(self, capacity: int, batches: Sequence[int]) -> None:
    for size in batches:
      if (capacity, size) not in self._warm:
        self._dummy(capacity).warm_plain(size)
        self._warm.add((capacity, size))

  def _dummy(self, size: int) -> Service:
    """Returns a service of a full block of one capacity, to compile with."""
    template, rng = self.template, np.random.default_rng(0)
    rows_ND = rng.standard_normal((size, template.adapter.width)).astype(np.float32)
    rows_ND /= np.linalg.norm(rows_ND, axis=1, keepdims=True)
    block = Block.of(rows_ND, pa.table({"id": [str(i) for i in range(size)]}))
    return self._service([block], [self._placed(template.adapter, rows_ND)])

  def _service(self, blocks: Sequence[Block], each: list[dict[str, jax.Array]]) -> Service:
    """Returns the service of blocks, and of each its arrays by space; the galleries of one space are one."""
    adapter = self.template.adapter
    each = each or [self._placed(adapter, np.zeros((0, adapter.width), np.float32))]
    counts = tuple(len(block.rows) for block in blocks) or (0,)
    alive = tuple(block.alive for block in blocks) or (np.zeros(0, bool),)
    spaces = {"frozen": "frozen", **self.spaces}
    of_space = {
      space: Pieces(tuple(arrays[space] for arrays in each), counts, alive, space) for space in {*spaces.values()}
    }
    for gallery in of_space.values():
      expect_searches(gallery)
    made = {
      place: self._indexes[id(block.rows)][1] for place, block in enumerate(blocks) if id(block.rows) in self._indexes
    }
    indexes = {name: {place: one[space] for place, one in made.items()} for name, space in self.spaces.items() if made}
    return self.template.over(Collected(blocks), {name: of_space[space] for name, space in spaces.items()}, indexes)

  def _placed(self, adapter: Adapter, rows_ND: np.ndarray) -> dict[str, jax.Array]:
    """Returns the rows of a block on the device, padded to its size, as they are and as each head wants them."""
    size = capacity_of(len(rows_ND))
    padded_CD = np.zeros((size, adapter.width), np.float32)
    padded_CD[:, 0] = 1
    padded_CD[: len(rows_ND)] = rows_ND
    found = {"frozen": jnp.asarray(padded_CD, self.dtype)}
    for name, space in self.spaces.items():
      if space not in found:
        chunks = (padded_CD[at : at + PREPARED_ROWS] for at in range(0, size, PREPARED_ROWS))
        found[space] = jnp.asarray(np.concatenate([adapter.prepare(chunk, name) for chunk in chunks]), self.dtype)
    return found
