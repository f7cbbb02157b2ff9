"""The items of a gallery by their ids and metadata: positions, records, and filters as masks. Held as Arrow columns."""

from __future__ import annotations

import datetime
import decimal
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.features.shards import check_ids
from qat_jax.features.store import FeatureStore
from qat_jax.serve.limits import Refused, invalid

FEW = 50  # distinct values of a column, up to which they are listed
EXAMPLES = 4
SAFE = 1 << 53  # above it a browser rounds integers
MASKS = 16  # kept


class Items:
  """N items: ids (text) and metadata columns."""

  def __init__(self, ids: pa.ChunkedArray, columns: pa.Table, where: str = "the gallery") -> None:
    """Raises ValueError for ids that are missing or repeated."""
    check_ids(ids, where)
    ids = ids.cast(pa.large_string())  # of one array with 64-bit offsets, however much text
    self.ids, self.columns = ids.combine_chunks(), columns
    self._order = pc.sort_indices(self.ids)
    self._mask = functools.lru_cache(MASKS)(self._mask_of)

  @classmethod
  def of(cls, store: FeatureStore) -> Items:
    """Returns the items of a feature folder: its scalar columns alone."""
    columns = {name: store.arrow_column(name) for name in store.columns if name != "id"}
    plain = {name: column for name, column in columns.items() if not pa.types.is_nested(column.type)}
    return cls(store.arrow_ids(), pa.table(plain), str(store.folder))

  def __len__(self) -> int:
    return len(self.ids)

  def id(self, position: int) -> str:
    """Returns the id at a position."""
    return self.ids[position].as_py()

  def position(self, name: str) -> int | None:
    """Returns the position of an id, None where there is none: a binary search, no table of all ids."""
    low, high = 0, len(self.ids)
    wanted = name.encode("utf-8", "surrogatepass")
    while low < high:
      middle = (low + high) // 2
      position = self._order[middle].as_py()
      here = self.ids[position].as_py().encode()
      if here == wanted:
        return position
      low, high = (middle + 1, high) if here < wanted else (low, middle)
    return None

  def known(self, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Returns the positions of ids (in their order, each once), and those that are not there."""
    found, unknown = [], []
    for name in dict.fromkeys(names):
      position = self.position(name)
      if position is None:
        unknown.append(name)
      else:
        found.append(position)
    return np.array(found, np.int64), unknown

  def positions(self, names: Iterable[str]) -> np.ndarray:
    """Returns the positions of ids; raises Refused (404) for one that is not there."""
    found, unknown = self.known(names)
    if unknown:
      raise Refused(404, "no_item", f"the gallery has no item {unknown[0][:200]!r} ({len(unknown)} such ids)")
    return found

  def records(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Returns id and metadata of items, as JSON can say them; what is missing is left out."""
    place = pa.array(np.asarray(positions, np.int64))
    names, ids = self.columns.column_names, self.ids.take(place).to_pylist()
    rows = self.columns.take(place).to_pylist() if names else [{} for _ in ids]
    return [
      {"id": name, "metadata": {k: as_json(v) for k, v in row.items() if as_json(v) is not None}}
      for name, row in zip(ids, rows, strict=True)
    ]

  def mask(self, filters: Mapping[str, Any]) -> np.ndarray | None:
    """Returns which items pass all filters (bool N), None where there are none.

    A filter is a value, a list of values, or {"least": x, "most": y}, either end optional. Missing values never pass.
    Raises Refused (422) for a column that is not there, or a value of another type.
    """
    return self._mask(json.dumps(filters, sort_keys=True)) if filters else None

  def _mask_of(self, written: str) -> np.ndarray:
    mask_N = np.ones(len(self), bool)
    for name, wanted in json.loads(written).items():
      mask_N &= self._passes(name, wanted)
    mask_N.setflags(write=False)
    return mask_N

  def _passes(self, name: str, wanted: Any) -> np.ndarray:
    column = self.ids if name == "id" else self._column(name)
    if isinstance(wanted, Mapping):
      ends = (("least", pc.greater_equal), ("most", pc.less_equal))
      parts = [self._compared(name, column, wanted[end], test) for end, test in ends if wanted.get(end) is not None]
      passes = functools.reduce(pc.and_, parts) if parts else pc.is_valid(column)
    else:
      values = wanted if isinstance(wanted, list) else [wanted]
      scalars = [self._scalar(name, column, value).as_py() for value in values]
      passes = pc.is_in(column, value_set=pa.array(scalars, column.type))
    passes = pc.fill_null(passes, False)
    return np.asarray(passes.to_numpy(zero_copy_only=False) if isinstance(passes, pa.Array) else passes.to_numpy())

  def _compared(self, name: str, column: Any, value: Any, test: Any) -> Any:
    try:
      return test(column, self._scalar(name, column, value, exact=False))
    except pa.ArrowException as error:
      raise invalid(f"the column {name!r} is {column.type}; it has no order to filter by") from error

  def _column(self, name: str) -> pa.ChunkedArray:
    if name not in self.columns.column_names:
      raise invalid(f"there is no metadata column {name[:100]!r}; there are {self.columns.column_names}")
    column = self.columns.column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

  def _scalar(self, name: str, column: Any, value: Any, exact: bool = True) -> pa.Scalar:
    """Returns a value in the column's type; raises Refused where it is of another."""
    kind = column.type
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = pa.types.is_integer(kind)
    fits = (
      (pa.types.is_boolean(kind) and isinstance(value, bool))
      or (pa.types.is_floating(kind) and number)
      or (whole and (number or (isinstance(value, str) and value.lstrip("-").isdigit())))
      or ((pa.types.is_string(kind) or pa.types.is_large_string(kind)) and isinstance(value, str))
      or (pa.types.is_temporal(kind) and isinstance(value, str))
    )
    try:
      if not fits:
        raise TypeError
      if whole and isinstance(value, str):
        value = int(value)
      if whole and isinstance(value, float):
        if not exact:
          return pa.scalar(value, pa.float64())
        if value != int(value):
          raise TypeError
        value = int(value)
      if pa.types.is_temporal(kind):
        return pa.scalar(value).cast(kind)
      return pa.scalar(value, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
      raise invalid(f"the column {name!r} is {kind}; {json.dumps(value)[:100]} is no value of it") from error

  @functools.cached_property
  def examples(self) -> list[str]:
    """A few captions from all over the gallery, to search for; none where there are no captions."""
    if "caption" not in self.columns.column_names or not pa.types.is_string(self.columns.schema.field("caption").type):
      return []
    places = np.unique(np.linspace(0, len(self) - 1, EXAMPLES + 2).astype(np.int64)[1:-1])
    return [text for text in self.columns.column("caption").take(pa.array(places)).to_pylist() if text]

  @functools.cached_property
  def facets(self) -> dict[str, dict[str, Any]]:
    """What can be filtered by: column → its type, and its values where there are few, or its least and greatest."""
    found: dict[str, dict[str, Any]] = {}
    for name in self.columns.column_names:
      column = self._column(name)
      about: dict[str, Any] = {"type": str(column.type)}
      if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_boolean(column.type):
        values = pc.unique(column).drop_null()
        if len(values) <= FEW:
          about["values"] = sorted(values.to_pylist())
      elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        ends = pc.min_max(column).as_py()
        about |= {end: as_json(value) for end, value in zip(("least", "most"), ends.values(), strict=True)}
      found[name] = about
    return found


def as_json(value: Any) -> Any:
  """Returns a metadata value as JSON can say it without loss in a browser; None where it cannot."""
  if isinstance(value, bool | str) or value is None:
    return value
  if isinstance(value, int):
    return value if -SAFE < value < SAFE else str(value)
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, datetime.date | datetime.time | datetime.datetime | datetime.timedelta | decimal.Decimal):
    return str(value)
  return None
