"""How features lie on disk: shards, their names and headers, meta.json; and the writer of such folders.

A folder under construction holds `incomplete/`: the plan, and a note for every shard that is whole. meta.json comes
last, so a folder with it is finished. Every file is renamed into place, so a kill at any moment costs one shard.
"""

from __future__ import annotations

import dataclasses
import io
import json
import mmap
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qat_jax.stages import write_json, write_whole

KINDS = ("img", "text")
META = "meta.json"
INCOMPLETE = "incomplete"
OURS = re.compile(rf"\.lock|{INCOMPLETE}|{re.escape(META)}\..*tmp")  # what a kill may leave of an earlier call
BLOCK_ROWS = 8192  # what is looked at in float32 at once


@dataclasses.dataclass(frozen=True)
class Shard:
  """One .npy file of features, N×D; holds no memory and no file handle."""

  path: Path
  rows: int
  width: int
  dtype: np.dtype
  offset: int  # of the first row, in bytes

  @classmethod
  def of(cls, path: Path) -> Shard:
    """Reads the header; raises ValueError where the file is not as long as it says, or holds no features."""
    try:
      array = np.load(path, mmap_mode="r", allow_pickle=False)
      whole = array.offset + array.nbytes == path.stat().st_size
    except (ValueError, EOFError) as error:
      raise ValueError(f"{path} is truncated or no .npy file ({error}); write this shard again") from error
    if not whole:
      raise ValueError(f"{path} is not as long as its header says; write this shard again")
    if array.ndim != 2 or array.dtype.kind != "f":
      raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}; features are float16 or float32, N×D")
    if not array.flags.c_contiguous:
      raise ValueError(f"{path} is stored column by column; save it again with np.ascontiguousarray")
    return cls(path, array.shape[0], array.shape[1], array.dtype, array.offset)

  def read(self, start: int, out_ND: np.ndarray) -> None:
    """Reads as many rows as `out_ND` has, from `start` on, into it."""
    with open(self.path, "rb", buffering=0) as file:
      file.seek(self.offset + start * self.width * self.dtype.itemsize)
      view = out_ND.data.cast("B") if out_ND.size else memoryview(b"")
      while len(view):
        count = file.readinto(view)
        if not count:
          raise OSError(f"{self.path} became shorter while it was open")
        view = view[count:]

  def take(self, rows_N: np.ndarray) -> np.ndarray:
    """Returns rows in any order through a mapping that reads no more than the pages they lie on."""
    with open(self.path, "rb") as file:
      mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
      mapping.madvise(mmap.MADV_RANDOM)  # without it every row reads its surroundings ahead
    flat = np.frombuffer(mapping, self.dtype, self.rows * self.width, self.offset)
    return flat.reshape(self.rows, self.width)[rows_N]


class FeatureWriter:
  """Writes a folder of features shard by shard, in any order; what was finished before a kill is not written again.

  `plan` (JSON values) says what is being written: features of another plan are never mixed in.
  """

  def __init__(self, folder: str | os.PathLike, plan: dict[str, Any], shards: int) -> None:
    """Begins, or goes on where the same plan was begun.

    Raises FileExistsError for a folder that holds anything else, ValueError for one begun with another plan.
    """
    self.folder, self.notes, self.shards = Path(folder), Path(folder) / INCOMPLETE, shards
    plan = json.loads(json.dumps({**plan, "shards": shards}))
    path = self.notes / "plan.json"
    if path.exists() and not (self.folder / META).exists():
      check_same_plan(self.folder, json.loads(path.read_text()), plan)
      return
    there = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
    strangers = [name for name in there if not OURS.fullmatch(name)]
    if strangers:
      raise FileExistsError(f"{self.folder} holds {sorted(strangers)[:5]} already; delete it or choose another folder")
    self.notes.mkdir(parents=True, exist_ok=True)
    for note in self.notes.glob("shard_*.json"):
      note.unlink()
    write_json(path, plan)

  @staticmethod
  def discard(folder: Path) -> None:
    """Removes what was begun in a folder and never finished; leaves everything else alone."""
    if not (folder / INCOMPLETE / "plan.json").exists() or (folder / META).exists():
      return
    for part in (*(f"{kind}_emb" for kind in KINDS), "metadata", INCOMPLETE):  # the mark goes last
      shutil.rmtree(folder / part, ignore_errors=True)

  def missing(self) -> list[int]:
    """Returns the numbers of the shards that are still to be written."""
    return [shard for shard in range(self.shards) if not self._note(shard).exists()]

  def write(
    self, shard: int, features: Mapping[str, np.ndarray], columns: Mapping[str, Any] | pa.Table, report: Any = None
  ) -> None:
    """Writes one shard: features by kind (ND each) and as many rows of metadata; `report` is kept until `finish`.

    Raises ValueError for rows that are NaN, infinite or zero (named by id), lengths that differ, and features that are
    not float N×D.
    """
    table = as_table(columns)
    files: dict[str, Any] = {}
    kinds, unit = {}, True
    for kind, features_ND in features.items():
      features_ND = np.ascontiguousarray(features_ND)
      if features_ND.ndim != 2 or features_ND.dtype.kind != "f":
        raise ValueError(
          f"the {kind} features are {features_ND.dtype} of shape {features_ND.shape}; wanted float16 or float32, N×D"
        )
      if len(features_ND) != len(table):
        raise ValueError(f"shard {shard} has {len(features_ND)} {kind} features for {len(table)} rows of metadata")
      check_rows(features_ND, f"shard {shard} ({kind})", lambda row: table.column("id")[row].as_py())
      header = io.BytesIO()
      np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(features_ND))
      self._put(files, f"{kind}_emb/{kind}_emb_{shard:04d}.npy", header.getvalue(), features_ND, rows=len(table))
      kinds[kind] = {"width": features_ND.shape[1], "dtype": str(features_ND.dtype)}
      unit = unit and is_unit(features_ND)
    parquet = pa.BufferOutputStream()
    pq.write_table(table, parquet)
    self._put(files, f"metadata/metadata_{shard:04d}.parquet", parquet.getvalue(), rows=len(table))
    note = {"rows": len(table), "kinds": kinds, "normalised": unit, "files": files, "report": report}
    write_json(self._note(shard), note)

  def reports(self) -> list[Any]:
    """Returns the reports of the shards that are whole, in their order."""
    return [json.loads(self._note(s).read_text())["report"] for s in range(self.shards) if self._note(s).exists()]

  def finish(self, meta: dict[str, Any]) -> None:
    """Declares the folder whole: writes meta.json, removes the notes; raises ValueError where shards are missing."""
    if missing := self.missing():
      raise ValueError(f"{self.folder}: {len(missing)} shards are not written, the first is {missing[0]}")
    notes = [json.loads(self._note(shard).read_text()) for shard in range(self.shards)]
    kinds = notes[0]["kinds"]
    if other := [i for i, note in enumerate(notes) if note["kinds"] != kinds]:
      raise ValueError(f"{self.folder}: shard {other[0]} holds {notes[other[0]]['kinds']}, shard 0 {kinds}")
    files = {name: entry for note in notes for name, entry in note["files"].items()}
    rows, unit = sum(note["rows"] for note in notes), all(note["normalised"] for note in notes)
    write_json(self.folder / META, describe(rows, kinds, unit, files, meta))
    shutil.rmtree(self.notes)

  def _note(self, shard: int) -> Path:
    return self.notes / f"shard_{shard:04d}.json"

  def _put(self, files: dict, name: str, *pieces: Any, rows: int) -> None:
    path = self.folder / name
    path.parent.mkdir(exist_ok=True)
    files[name] = {"rows": rows, "checksum": write_whole(path, *pieces)}


def check_same_plan(folder: Path, begun: dict[str, Any], plan: dict[str, Any]) -> None:
  """Raises ValueError that says in what two plans for a folder differ."""
  differing = sorted(name for name in begun.keys() | plan.keys() if begun.get(name) != plan.get(name))
  if differing:
    texts = "; ".join(f"{name} was {begun.get(name)!r}, is {plan.get(name)!r}" for name in differing)
    raise ValueError(f"{folder} was begun with other settings ({texts}); delete it or choose another folder")


def as_table(columns: Mapping[str, Any] | pa.Table) -> pa.Table:
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
  """Returns the shards `<stem>/<stem>_<number>.<ending>` in the order of their numbers, however wide these are."""
  name = re.compile(rf"(?:{stem})_(\d+)\.{ending}")
  there = [(match, path) for path in (folder / stem).glob(f"*.{ending}") if (match := name.fullmatch(path.name))]
  return [path for _, path in sorted((int(match[1]), path) for match, path in there)]


def read_meta(folder: Path) -> dict[str, Any]:
  """Returns what meta.json says, an empty dict where there is none."""
  path = folder / META
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error}); delete it, `FeatureStore.write_meta` makes a new one") from error


def describe(rows: int, kinds: dict, normalised: bool, files: dict, extra: dict[str, Any]) -> dict[str, Any]:
  """Returns the content of meta.json: `extra` is free, the rest says what lies in the folder."""
  about = {"version": 1, "rows": rows, "kinds": kinds, "normalised": normalised}
  return {"space": "frozen", **extra, **about, "files": files}


def check_rows(features_ND: np.ndarray, where: str, id_of: Callable[[int], str]) -> None:
  """Raises ValueError that names (by `id_of` its row) the items that no ranking can use: NaN, infinite or zero."""
  square_N = _squares(features_ND)
  for bad_N, what in ((~np.isfinite(square_N), "NaN or infinite"), (square_N == 0, "zero")):
    if bad_N.any():
      names = ", ".join(repr(id_of(int(row))) for row in np.flatnonzero(bad_N)[:5])
      raise ValueError(
        f"{where}: {bad_N.sum()} items have {what} features: {names}; encode them again or leave them out"
      )


def check_ids(ids: pa.ChunkedArray, where: Path | str) -> None:
  """Raises ValueError that names repeated ids, or the first row that has none."""
  if ids.null_count:
    row = int(np.flatnonzero(ids.is_null().to_numpy())[0])
    raise ValueError(f"{where}: {ids.null_count} items have no id, the first in row {row}; give each its own")
  if len(ids.unique()) == len(ids):  # much cheaper than to count
    return
  counts = ids.value_counts()
  repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
  names = ", ".join(map(repr, repeated[:5].to_pylist()))
  raise ValueError(f"{where}: {len(repeated)} ids occur more than once: {names}; give each item its own")


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


def parquet_rows(path: Path) -> int:
  """Returns how many rows a Parquet file says it has; raises ValueError for one that cannot be read."""
  try:
    return pq.read_metadata(path).num_rows
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f"{path} is truncated or no Parquet file ({error}); write this shard again") from error
