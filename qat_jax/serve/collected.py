"""The items of several blocks as those of one gallery; the dead among them are not there."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qat_jax.serve.collection.blocks import Block
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
    return next(iter(self.known([name])[0].tolist()), None)

  def places(self, names: list[str]) -> np.ndarray:
    """Returns the position of each id, −1 where there is none alive."""
    place_N = np.full(len(names), -1, np.int64)
    for block, start in zip(self.blocks, self.starts.tolist(), strict=False):
      row_N = block.items.places(names)
      alive_N = (row_N >= 0) & block.alive[row_N]
      place_N[alive_N] = start + row_N[alive_N]
    return place_N

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

  @functools.cached_property
  def placed(self) -> np.ndarray:
    """Which items are placed by a map of another encoder's features (bool N)."""
    return np.concatenate([np.zeros(0, bool), *(is_placed(block) & block.alive for block in self.blocks)])

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
