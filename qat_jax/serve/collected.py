"""The items of several blocks as those of one gallery; the dead among them are not there."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qat_jax.serve.collection.blocks import CONTENT, STAMP, Block
from qat_jax.serve.collection.migrating import is_placed
from qat_jax.serve.items import MASKS, Items


class Collected(Items):
  """Items by their ids and metadata; a position is that among all blocks' rows, the dead ones included."""

  def __init__(self, blocks: Sequence[Block]) -> None:
    self.blocks = list(blocks)
    self.starts = np.cumsum([0, *(len(block.rows) for block in blocks)])
    self.alive = np.concatenate([np.zeros(0, bool), *(block.alive for block in blocks)])
    self.ids = pa.chunked_array([block.items.ids for block in blocks], pa.large_string())
    tables = [block.items.columns for block in blocks] or [pa.table({})]
    self.columns = pa.concat_tables(tables, promote_options="default")  # copies nothing
    self._mask, self._groups = functools.lru_cache(MASKS)(self._mask_of), functools.lru_cache(MASKS)(self._groups_of)

  def __len__(self) -> int:
    return int(self.starts[-1])

  @property
  def living(self) -> np.ndarray:
    """The positions of those that are alive."""
    return np.flatnonzero(self.alive)

  def position(self, name: str) -> int | None:
    """Returns the position of an id, None where there is none alive."""
    for block, start in zip(reversed(self.blocks), reversed(self.starts[:-1].tolist()), strict=True):
      row = block.items.position(name)
      if row is not None and block.alive[row]:
        return start + row
    return None

  def known(self, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Returns the positions of ids (in their order, each once), and those that are not there."""
    once = list(dict.fromkeys(names))
    place = dict.fromkeys(once, -1)
    for block, start in zip(self.blocks, self.starts.tolist(), strict=False):
      found, _ = block.items.known(once)
      for row in found[block.alive[found]].tolist():
        place[block.items.id(row)] = start + row
    place_N = np.array(list(place.values()), np.int64)
    return place_N[place_N >= 0], [once[i] for i in np.flatnonzero(place_N < 0)]

  def records(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Returns id and metadata of items, as JSON can say them; what is missing is left out."""
    place_N = np.asarray(positions, np.int64)
    of_N = np.searchsorted(self.starts, place_N, "right") - 1
    found: list[dict[str, Any]] = [{} for _ in place_N]
    for block in np.unique(of_N):
      here = np.flatnonzero(of_N == block)
      records = self.blocks[block].items.records(place_N[here] - self.starts[block])
      for i, record in zip(here.tolist(), records, strict=True):
        found[i] = record
    return found

  def origin(self, name: str) -> tuple[str, str]:
    """Returns the digest of an item's picture, and its stamp; "" for what is not there."""
    if (position := self.position(name)) is None:
      return "", ""
    block = self._block_of(position)
    row = self.blocks[block].table.slice(position - int(self.starts[block]), 1)
    return row.column(CONTENT)[0].as_py(), row.column(STAMP)[0].as_py()

  @functools.cached_property
  def placed(self) -> np.ndarray:
    """Which items are placed by a map of another encoder's features (bool N)."""
    return np.concatenate([np.zeros(0, bool), *(is_placed(block) & block.alive for block in self.blocks)])

  def _block_of(self, position: int) -> int:
    return int(np.searchsorted(self.starts, position, "right")) - 1

  def _mask_of(self, written: str) -> np.ndarray:
    filters = json.loads(written)
    for name in filters:
      if name != "id":
        self._column(name)  # raises where there is none
    masks = [np.zeros(0, bool)]
    for block in self.blocks:
      there = filters.keys() <= {"id", *block.items.columns.column_names}
      mask_N = block.items.mask(filters) if there else None
      masks.append(np.zeros(len(block.rows), bool) if mask_N is None else mask_N & block.alive)
    mask_N = np.concatenate(masks)
    mask_N.setflags(write=False)
    return mask_N
