"""The items of a gallery by their ids and metadata: positions, records, and filters as masks. Held as Arrow columns."""

import bisect
import datetime
import decimal
import functools
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.datasets.columns import check_ids, widened
from qat_jax.features.store import FeatureStore
from qat_jax.search.grouping import groups_of
from qat_jax.serve.limits import Refused, invalid
from qat_jax.types import as_gallery

FEW = 50  # distinct values of a column, up to which they are listed
EXAMPLES = 4
SAFE = 1 << 53  # above it a browser rounds integers
MASKS = 16  # kept
MANY = 1_000  # ids, above which all are looked up together
WHOLE = re.compile("-?[0-9]{1,30}")

_log = logging.getLogger(__name__)


class Items:
  """N items: ids (text) and metadata columns."""

  def __init__(self, ids: pa.ChunkedArray, columns: pa.Table, where: str = "the gallery") -> None:
    """Raises ValueError for ids that are missing or repeated."""
    check_ids(ids, where)
    ids = ids.cast(pa.large_string())  # of one array with 64-bit offsets, however much text
    # of types that Arrow can compare and take from: not all functions know all types
    other = {pa.float16(): pa.float32(), pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    schema = pa.schema([field.with_type(other.get(field.type, field.type)) for field in columns.schema])
    self.ids, self.columns = ids.combine_chunks(), columns.cast(schema)
    self._order = pc.sort_indices(self.ids)
    self._mask, self._groups = functools.lru_cache(MASKS)(self._mask_of), functools.lru_cache(MASKS)(self._groups_of)

  @classmethod
  def of(cls, *stores: FeatureStore) -> Self:
    """Returns the items of feature folders, one after another: scalar columns alone.

    A column whose types in the folders have nothing in common is left out; a line of the log names it.
    """
    tables = [store.metadata() for store in stores]
    found, where = {}, ", ".join(str(store.folder) for store in stores)
    plain = [field.name for one in tables for field in one.schema if not pa.types.is_nested(field.type)]
    missing = lambda table: pa.chunked_array([pa.nulls(len(table))])
    for name in dict.fromkeys(plain):
      parts = [one.column(name) if name in one.column_names else missing(one) for one in tables]
      try:
        found[name] = widened(parts, f"{where}, column {name!r},") if len(parts) > 1 else parts[0]
      except ValueError as error:
        _log.warning("a column is left out: %s", error)
    ids = found.pop("id")
    return cls(ids, pa.table(found), where)

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def living(self) -> np.ndarray:
    """The positions of those that can be found."""
    return np.arange(len(self.ids))

  @functools.cached_property
  def count(self) -> int:
    """How many can be found."""
    return len(self.living)

  def id(self, position: int) -> str:
    """Returns the id at a position."""
    return self.ids[position].as_py()

  def position(self, name: str) -> int | None:
    """Returns the position of an id, None where there is none: a binary search, no table of all ids."""
    sorted_at = lambda place: self.id(self._order[place].as_py()).encode()
    wanted = name.encode("utf-8", "surrogatepass")
    place = bisect.bisect_left(range(len(self.ids)), wanted, key=sorted_at)
    return self._order[place].as_py() if place < len(self.ids) and sorted_at(place) == wanted else None

  def known(self, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Returns the positions of ids (in their order, each once), and those that are not there."""
    once = list(dict.fromkeys(names))
    place_N = self.places(once)
    return place_N[place_N >= 0], [once[i] for i in np.flatnonzero(place_N < 0)]

  def places(self, names: list[str]) -> np.ndarray:
    """Returns the position of each id, −1 where there is none; of many by one look at all ids of the gallery."""
    if len(names) <= MANY:
      return np.array([-1 if (one := self.position(name)) is None else one for name in names], np.int64)
    wanted = pa.array([name.encode("utf-8", "surrogatepass") for name in names], pa.large_binary())
    which_N = pc.fill_null(pc.index_in(self.ids.cast(pa.large_binary()), value_set=wanted), -1).to_numpy()
    place = np.full(len(names), -1, np.int64)
    there = np.flatnonzero(which_N >= 0)
    place[which_N[there]] = there
    return place

  def positions(self, names: Iterable[str]) -> np.ndarray:
    """Returns the positions of ids; raises Refused (404) for one that is not there."""
    found, unknown = self.known(names)
    if unknown:
      raise Refused(404, "no_item", f"the gallery has no item {unknown[0][:200]!r} ({len(unknown)} such ids)")
    return found

  def records(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Returns id and metadata of items, as JSON can say them; what is missing is left out."""
    place = pa.array(np.asarray(positions, np.int64))
    ids = self.ids.take(place).to_pylist()
    rows = _readable(self.columns.take(place)).to_pylist() if self.columns.num_columns else [{} for _ in ids]
    return [
      {"id": name, "metadata": {k: as_json(v) for k, v in row.items() if as_json(v) is not None}}
      for name, row in zip(ids, rows, strict=True)
    ]

  def mask(self, filters: Mapping[str, Any]) -> np.ndarray | None:
    """Returns which items pass all filters (bool N), None where there are none.

    A filter is a value, a list of values, or {"least": x, "most": y}, either end optional. Missing values and NaN
    never pass.
    Raises Refused (422) for a column that is not there, or a value of another type.
    """
    return self._mask(json.dumps(filters, sort_keys=True)) if filters else None

  def groups(self, column: str) -> np.ndarray:
    """Returns a number for each item that is equal where the column is; raises Refused (422) where there is none."""
    return self._groups(column)

  def _groups_of(self, column: str) -> np.ndarray:
    values = self._column(column)
    try:
      return groups_of(values.to_numpy(), as_gallery(np.broadcast_to(np.float32(0), (len(self), 1))))
    except ValueError as error:
      raise invalid(f"the column {column[:100]!r} makes no groups: {error}") from error

  def _mask_of(self, written: str) -> np.ndarray:
    mask_N = np.ones(len(self), bool)
    for name, wanted in json.loads(written).items():
      mask_N &= self._passes(name, wanted)
    mask_N.setflags(write=False)
    return mask_N

  def _passes(self, name: str, wanted: Any) -> np.ndarray:
    column = self.ids if name == "id" else self._column(name)
    if isinstance(wanted, Mapping):
      parts = [self._beyond(name, column, end, wanted[end]) for end in ("least", "most") if wanted.get(end) is not None]
      if not parts:
        parts = [pc.is_valid(column) if not pa.types.is_floating(column.type) else pc.invert(pc.is_nan(column))]
      passes = functools.reduce(pc.and_, parts)
    else:
      values = wanted if isinstance(wanted, list) else [wanted]
      if pa.types.is_floating(column.type) and 0 in values:
        values = [*values, 0.0, -0.0]  # which Arrow tells apart
      passes = pc.is_in(column, value_set=pa.array([_scalar(name, column.type, one) for one in values], column.type))
    passes = pc.fill_null(passes, False)
    return np.asarray(passes.to_numpy(zero_copy_only=False) if isinstance(passes, pa.Array) else passes.to_numpy())

  def _beyond(self, name: str, column: Any, end: str, value: Any) -> Any:
    """Returns which values are at least, or at most, this one: any number will do for a column of numbers."""
    kind, wanted = column.type, value
    if pa.types.is_integer(kind) and isinstance(value, float):
      wanted = math.ceil(value) if end == "least" else math.floor(value)
    elif pa.types.is_integer(kind) and isinstance(value, str) and WHOLE.fullmatch(value):
      wanted = int(value)
    if pa.types.is_integer(kind) and isinstance(wanted, int) and not isinstance(wanted, bool):
      of_type = np.iinfo(kind.to_pandas_dtype())
      if not of_type.min <= wanted <= of_type.max:  # then it is beyond all of them, or none
        return pc.and_(pc.is_valid(column), (wanted < 0) == (end == "least"))
    test = pc.greater_equal if end == "least" else pc.less_equal
    try:
      return test(column, _scalar(name, kind, wanted, exact=False))
    except pa.ArrowException as error:
      raise invalid(f"the column {name!r} is {kind}; it has no order to filter by") from error

  def _column(self, name: str) -> pa.ChunkedArray:
    if name not in self.columns.column_names:
      raise invalid(f"there is no metadata column {name[:100]!r}; there are {self.columns.column_names}")
    column = self.columns.column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

  @functools.cached_property
  def examples(self) -> list[str]:
    """A few captions from all over the gallery, to search for; none where there are no captions."""
    if not self.count:
      return []
    places = np.unique(np.linspace(0, self.count - 1, EXAMPLES + 2).astype(np.int64)[1:-1])
    texts = [record["metadata"].get("caption") for record in self.records(self.living[places])]
    return [text for text in texts if isinstance(text, str) and text]

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


def _scalar(name: str, kind: pa.DataType, value: Any, exact: bool = True) -> pa.Scalar:
  """Returns a value in a column's type; raises Refused where it is of another, or has more digits where it is exact."""
  try:
    if _is_number(value) and pa.types.is_integer(kind) and value == int(value):
      return pa.scalar(int(value), kind)
    if _is_number(value) and pa.types.is_floating(kind):
      number = pa.scalar(value, kind)
      if exact and math.isinf(number.as_py()):
        raise OverflowError
      return number
    if pa.types.is_decimal(kind) and (_is_number(value) or isinstance(value, str)):
      number = pa.scalar(decimal.Decimal(str(value)))
      return number.cast(kind) if exact else number
    if isinstance(value, bool) and pa.types.is_boolean(kind):
      return pa.scalar(value)
    if isinstance(value, str):
      if pa.types.is_integer(kind) and WHOLE.fullmatch(value):
        return pa.scalar(int(value), kind)
      if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.scalar(value, kind)
      if pa.types.is_time(kind):
        return pa.scalar(datetime.time.fromisoformat(value), kind)
      if pa.types.is_temporal(kind):
        return pa.scalar(value).cast(kind)
  except (pa.ArrowException, ValueError, OverflowError, ArithmeticError):
    pass
  zoned = pa.types.is_timestamp(kind) and kind.tz is not None
  hint = "; a time there has its zone: 2026-01-31T12:00:00Z" if zoned else ""
  raise invalid(f"the column {name!r} is {kind}; {json.dumps(value)[:100]} is no value of it{hint}")


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _readable(table: pa.Table) -> pa.Table:
  """Returns a table whose values Python has: its own times end at the microsecond, finer ones become text."""
  for i, field in enumerate(table.schema):
    if field.type in (pa.duration("ns"), pa.time64("ns")):
      coarse = pa.duration("us") if pa.types.is_duration(field.type) else pa.time64("us")
      table = table.set_column(i, field.name, table.column(i).cast(coarse, safe=False))
    elif pa.types.is_timestamp(field.type) and field.type.unit == "ns":
      table = table.set_column(i, field.name, table.column(i).cast(pa.string()))
  return table


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
