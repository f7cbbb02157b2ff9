"""How features lie on disk: shards, their names and headers, meta.json, and what is wrong with rows and ids."""

import dataclasses
import itertools
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa

from qat_jax.datasets.columns import parquet_rows
from qat_jax.sealed import UNREADABLE, read_record

KINDS = ("img", "text")
META = "meta.json"
INCOMPLETE = "incomplete"
VERSION = 1  # of meta.json
DTYPES = (np.dtype(np.float16), np.dtype(np.float32))
MAGIC = b"\x93NUMPY"
CHUNK_ROWS = 65536
BLOCK_ROWS = 8192  # what is looked at in float32 at once


@dataclasses.dataclass(frozen=True)
class Shard:
  """One .npy file of features, N×D; holds no memory and no file handle."""

  path: Path
  rows: int
  width: int
  dtype: np.dtype
  offset: int  # of the first row, in bytes
  stamp: tuple[int, ...]  # of the file that was opened: another one may have taken its name since

  @classmethod
  def of(cls, path: Path) -> Self:
    """Reads the header; raises ValueError where the file is not as long as it says, or holds no features."""
    check_npy(path)
    try:
      array = np.load(path, mmap_mode="r", allow_pickle=False)
      whole = array.offset + array.nbytes == path.stat().st_size
    except UNREADABLE as error:
      raise ValueError(f"{path} is truncated or no .npy file ({error}); write this shard again") from error
    if not whole:
      raise ValueError(f"{path} is not as long as its header says; write this shard again")
    if array.ndim != 2 or array.dtype not in DTYPES:
      raise ValueError(
        f"{path} holds {array.dtype} of shape {array.shape}; features are float16 or float32 in this machine's byte "
        f"order, N×D: save it again with .astype('float32')"
      )
    if not array.flags.c_contiguous:
      raise ValueError(f"{path} is stored column by column; save it again with np.ascontiguousarray")
    return cls(path, array.shape[0], array.shape[1], array.dtype, array.offset, _stamp(path.stat()))

  def read(self, start: int, out_ND: np.ndarray) -> None:
    """Reads as many rows as `out_ND` has, from `start` on, into it."""
    with open(self.path, "rb") as file:
      self._check(file)
      file.seek(self.offset + start * self.width * self.dtype.itemsize)
      if out_ND.size and file.readinto(out_ND.data.cast("B")) < out_ND.nbytes:
        raise OSError(f"{self.path} became shorter while it was open")

  def take(self, rows_N: np.ndarray) -> np.ndarray:
    """Returns rows in any order through a mapping that reads no more than the pages they lie on."""
    with open(self.path, "rb") as file:
      self._check(file)
      mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
      mapping.madvise(mmap.MADV_RANDOM)  # without it every row reads its surroundings ahead
    flat = np.frombuffer(mapping, self.dtype, self.rows * self.width, self.offset)
    return flat.reshape(self.rows, self.width)[rows_N]

  def _check(self, file: IO[bytes]) -> None:
    if _stamp(os.fstat(file.fileno())) != self.stamp:
      raise OSError(f"{self.path} was changed while it was open; open its store again")


class ShardedRows:
  """The rows of shards, N×D, one shard after the other; only what is asked for is read."""

  def __init__(self, shards: list[Shard]) -> None:
    """Raises ValueError where the shards are of different widths or types."""
    first = shards[0]
    self.shards, self.width, self.dtype = shards, first.width, first.dtype
    for shard in shards:
      if (shard.width, shard.dtype) != (self.width, self.dtype):
        raise ValueError(
          f"{shard.path} is {shard.width} wide, {shard.dtype}; {first.path.name} is {self.width} wide, {self.dtype}: "
          "shards of one store must agree, write this one again"
        )
    self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])]).astype(np.int64)

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
    """Returns rows (ND, stored dtype, in memory): a slice, or positions in any order, with repeats.

    Raises IndexError for positions outside 0 … N − 1; −1 is padding in this library, never the last row.
    """
    if isinstance(rows, slice):
      start, stop, step = rows.indices(len(self))
      return self._read(start, stop) if step == 1 else self._gather(np.arange(start, stop, step))
    positions = np.asarray(rows)
    return self._gather(positions) if positions.ndim else self._gather(positions[None])[0]

  def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (start, features) from first to last, `rows` at a time."""
    for start in range(0, len(self), rows):
      yield start, self[start : start + rows]

  def _read(self, start: int, stop: int) -> np.ndarray:
    features_ND = np.empty((max(stop - start, 0), self.width), self.dtype)
    touched = np.searchsorted(self._starts, [start, stop], "right") - 1
    for number in range(touched[0], min(touched[1] + 1, len(self.shards))):
      first, shard = int(self._starts[number]), self.shards[number]
      low, high = max(start, first), min(stop, first + shard.rows)
      if low < high:
        shard.read(low - first, features_ND[low - start : high - start])
    return features_ND

  def _gather(self, positions_N: np.ndarray) -> np.ndarray:
    """Returns rows in the order of `positions_N`, each shard read once, from its front to its back."""
    if positions_N.ndim != 1 or (positions_N.size and positions_N.dtype.kind not in "iu"):
      raise IndexError(f"positions are {positions_N.dtype} of shape {positions_N.shape}; give integers, one axis")
    if positions_N.size and not (positions_N.min() >= 0 and positions_N.max() < len(self)):
      raise IndexError(
        f"positions {positions_N.min()} to {positions_N.max()} asked of a store of {len(self)} items; −1 is padding"
      )
    positions_N = positions_N.astype(np.int64)
    features_ND = np.empty((len(positions_N), self.width), self.dtype)
    order_N = np.argsort(positions_N, kind="stable")
    cuts = np.searchsorted(positions_N[order_N], self._starts)
    for shard in np.flatnonzero(np.diff(cuts)):
      rows = order_N[cuts[shard] : cuts[shard + 1]]
      features_ND[rows] = self.shards[shard].take(positions_N[rows] - self._starts[shard])
    return features_ND


def check_npy(path: Path) -> None:
  """Raises ValueError for a file that is no .npy, with its first bytes: NumPy would speak of pickles."""
  with open(path, "rb") as file:
    head = file.read(16)
  if not head.startswith(MAGIC):
    raise ValueError(f"{path} is no .npy file: it begins with {head!r}; write it with numpy.save")


def _stamp(about: os.stat_result) -> tuple[int, ...]:
  return about.st_ino, about.st_size, about.st_mtime_ns


def as_table(columns: Mapping[str, object] | pa.Table) -> pa.Table:
  """Returns metadata as a table; raises ValueError where the columns differ in length or none is `id`."""
  if isinstance(columns, pa.Table):
    table = columns
  else:
    arrays = {name: pa.array(values) for name, values in columns.items()}
    if len({len(array) for array in arrays.values()}) > 1:
      raise ValueError(f"columns differ in length: { {name: len(array) for name, array in arrays.items()} }")
    table = pa.table(arrays)
  if "id" not in table.column_names:
    raise ValueError(f"metadata has the columns {table.column_names}; one must be `id`, a name for each item")
  return table


def shard_files(folder: Path, stem: str, ending: str) -> list[Path]:
  """Returns the shards `<stem>/<stem>_<number>.<ending>` in the order of their numbers, however wide these are.

  Raises ValueError for a file with that ending and another name, and for a number that occurs twice.
  """
  name = re.compile(rf"{stem}_\d+\.{ending}", re.IGNORECASE)
  paths = [path for path in (folder / stem).glob("*") if path.name.lower().endswith(f".{ending}")]
  paths = [path for path in paths if not path.name.startswith(".")]
  if strange := [path for path in paths if not name.fullmatch(path.name)]:
    raise ValueError(f"{strange[0]} is no shard, which are called {stem}_0.{ending} and so on; rename or remove it")
  paths.sort(key=number)
  for first, second in itertools.pairwise(paths):
    if number(first) == number(second):
      raise ValueError(f"{first} and {second.name} have the same number; remove one of them")
  return paths


def number(path: Path) -> int:
  """Returns the number of a shard."""
  return int(path.stem.rpartition("_")[2])


def check_numbers(first: list[Path], second: list[Path]) -> None:
  """Raises ValueError that names the shards of one kind which the other kind lacks.

  One file may go with several whose numbers follow its own without a gap: they are all that it was made of.
  """
  one, several = sorted((first, second), key=len)
  if len(one) == 1 and [number(path) - number(one[0]) for path in several] == list(range(len(several))):
    return
  numbers = [{number(path): path for path in paths} for paths in (first, second)]
  alone = [sorted(one.keys() - other.keys()) for one, other in (numbers, numbers[::-1])]
  if any(alone):
    names = [paths[n].name for paths, missing in zip(numbers, alone, strict=True) for n in missing[:3]]
    raise ValueError(
      f"{first[0].parents[1]}: {', '.join(names)} have no partner of their number in {first[0].parent.name}/ and "
      f"{second[0].parent.name}/; shards pair by their numbers: restore the missing ones, or remove these"
    )


def read_meta(folder: Path) -> dict[str, Any]:
  """Returns what meta.json says, an empty dict where there is none."""
  path = folder / META
  if not path.exists():
    return {}
  try:
    meta = read_record(path)
  except ValueError as error:
    raise ValueError(f"{error}. Without {META}, `FeatureStore.write_meta` makes a new one") from error
  files = meta.get("files", {})
  described = isinstance(files, dict) and all(isinstance(x, dict) and "checksum" in x for x in files.values())
  if not described or any(not isinstance(meta.get(name), str | None) for name in ("encoder", "revision", "space")):
    raise ValueError(f"{path} is no description of features: its files, encoder, revision or space are of another kind")
  if meta.get("version", VERSION) != VERSION:
    raise ValueError(f"{path} is of version {meta['version']!r}, and this one reads {VERSION}: upgrade qat-jax")
  return meta


def describe_shards(extra: Mapping[str, Any], **about: Any) -> dict[str, Any]:
  """Returns the content of meta.json: `extra` is free, `about` says what lies in the folder."""
  return {"space": "frozen", **extra, "version": VERSION, **about}


def check_rows(features_ND: np.ndarray, where: str, id_of: Callable[[int], str]) -> None:
  """Raises ValueError that names (by `id_of` its row) the items that no ranking can use: NaN, infinite or zero."""
  square_N = _squares(features_ND)
  for bad_N, what in ((~np.isfinite(square_N), "NaN or infinite"), (square_N == 0, "zero")):
    if bad_N.any():
      names = ", ".join(repr(id_of(int(row))) for row in np.flatnonzero(bad_N)[:5])
      raise ValueError(
        f"{where}: {bad_N.sum()} items have {what} features: {names}; encode them again or leave them out"
      )


def is_unit(features_ND: np.ndarray) -> bool:
  """Says whether all rows have length 1, as far as fp16 can tell."""
  return bool(np.all(np.abs(np.sqrt(_squares(features_ND)) - 1) < 5e-3))


def _squares(features_ND: np.ndarray) -> np.ndarray:
  square_N = np.empty(len(features_ND), np.float32)
  with np.errstate(over="ignore", invalid="ignore"):
    for start in range(0, len(features_ND), BLOCK_ROWS):
      block_ND = features_ND[start : start + BLOCK_ROWS].astype(np.float32)
      square_N[start : start + BLOCK_ROWS] = np.einsum("ND,ND->N", block_ND, block_ND)
  return square_N


def check_counts(
  folder: Path, kind: str, described: Mapping[str, Any], shards: list[Shard], metadata: list[Path]
) -> None:
  """Raises an error where meta.json, the shards of one kind and the metadata's do not tell the same story.

  Args:
    folder: that holds them.
    kind: of the features.
    described: the files that meta.json lists, by their names.
    shards: of the features.
    metadata: the files of the metadata.

  FileNotFoundError for a file that meta.json describes and is missing, ValueError for one that it does not describe,
  or numbers of rows that differ.
  """
  for path in [folder / name for name in described]:
    if not path.exists():
      raise FileNotFoundError(f"{path} is missing, {META} lists it; restore it or write the folder again")
  if described:
    paths = [*(shard.path for shard in shards), *metadata]
    stray = [path for path in paths if path.relative_to(folder).as_posix() not in described]
    if stray:
      raise ValueError(f"{META} of {folder} does not list {stray[0].name}; remove the shard, or {META} to reread")
  if not metadata:
    return
  check_numbers([shard.path for shard in shards], metadata)
  counts = [parquet_rows(path) for path in metadata]
  pairs = zip(shards, counts, strict=True) if len(counts) == len(shards) else []
  for shard, count in pairs:
    if shard.rows != count:
      raise ValueError(f"{shard.path} has {shard.rows} rows, its metadata {count}; write this shard again")
  rows = sum(shard.rows for shard in shards)
  if sum(counts) != rows:
    raise ValueError(f"{folder} has {rows} {kind} features and metadata of {sum(counts)} items")
