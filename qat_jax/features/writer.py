"""The writer of feature folders.

A folder under construction holds `incomplete/`: the plan, and a note for every shard that is whole. meta.json comes
last, so a folder with it is finished. Every file is renamed into place, so a kill at any moment costs one shard.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qat_jax.features.shards import DTYPES, INCOMPLETE, KINDS, META, as_table, check_rows, describe_shards, is_unit
from qat_jax.sealed import check_format, read_record, readable, write_record
from qat_jax.stages import changed, check_same, write_whole

FORMAT = 1  # of a folder under construction
OURS = re.compile(rf"\.lock|{INCOMPLETE}|{re.escape(META)}\..*tmp")  # what a kill may leave of an earlier call


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
    self.earlier: list[int] = []  # what an earlier call wrote
    if path.exists() and not (self.folder / META).exists():
      check_same(self.folder, self.begun(self.folder) or {}, plan, "Delete it or choose another folder")
      self.earlier = [shard for shard in range(shards) if self.is_whole(shard)]
      return
    there = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
    strangers = [name for name in there if not OURS.fullmatch(name)]
    if strangers:
      raise FileExistsError(f"{self.folder} holds {sorted(strangers)[:5]} already; delete it or choose another folder")
    self.notes.mkdir(parents=True, exist_ok=True)
    for note in self.notes.glob("shard_*.json"):
      note.unlink()
    write_record(path, {"format": FORMAT, **plan})

  @staticmethod
  def begun(folder: Path) -> dict[str, Any] | None:
    """Returns the plan of what was begun in a folder and never finished; None where there is nothing of the kind.

    Raises ValueError where it was begun by a later version.
    """
    path = folder / INCOMPLETE / "plan.json"
    if not path.exists() or (folder / META).exists():
      return None
    plan = read_record(path)
    check_format(path, plan.pop("format", FORMAT), FORMAT, f"delete {folder}")
    return plan

  @staticmethod
  def discard(folder: Path) -> None:
    """Removes what was begun in a folder and never finished; leaves everything else alone."""
    if FeatureWriter.begun(folder) is None:
      return
    for part in (*(f"{kind}_emb" for kind in KINDS), "metadata", INCOMPLETE):  # the mark goes last
      shutil.rmtree(folder / part, ignore_errors=True)

  @staticmethod
  def undo(folder: Path) -> None:
    """Makes a finished folder one that was begun, so that `discard` removes it; the folder is whole until then."""
    (folder / INCOMPLETE).mkdir(exist_ok=True)
    write_record(folder / INCOMPLETE / "plan.json", {"format": FORMAT})
    (folder / META).unlink()

  def missing(self) -> list[int]:
    """Returns the numbers of the shards that are still to be written."""
    return [shard for shard in range(self.shards) if not self.is_whole(shard)]

  def is_whole(self, shard: int) -> bool:
    """Says whether a shard is written."""
    return self._note(shard).exists()

  def write(
    self,
    shard: int,
    features: Mapping[str, np.ndarray],
    columns: Mapping[str, object] | pa.Table,
    report: object = None,
  ) -> None:
    """Writes one shard.

    Args:
      shard: its number.
      features: by kind, ND each.
      columns: as many rows of metadata.
      report: is kept until `finish`.

    Raises ValueError for rows that are NaN, infinite or zero (named by id), lengths that differ, and features that are
    not float N×D.
    """
    table = as_table(columns)
    files: dict[str, Any] = {}
    kinds, unit = {}, True
    for kind, features_ND in features.items():
      features_ND = np.ascontiguousarray(features_ND)
      if features_ND.ndim != 2 or features_ND.dtype not in DTYPES:
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
    write_record(self._note(shard), note)

  def reports(self) -> list[Any]:
    """Returns the reports of the shards that are whole, in their order."""
    return [read_record(self._note(s))["report"] for s in range(self.shards) if self._note(s).exists()]

  def ids(self, shards: Iterable[int]) -> pa.ChunkedArray:
    """Returns the items' ids in some of the shards that are whole, in their order."""
    names = [f"metadata_{shard:04d}.parquet" for shard in sorted(shards)]
    parts = []
    for path in (self.folder / "metadata" / name for name in names):
      with readable(path):
        parts.append(pq.read_table(path, columns=["id"]).column("id"))
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())

  def finish(self, meta: dict[str, Any]) -> None:
    """Declares the folder whole: writes meta.json, removes the notes and what killed writers left half done.

    Raises ValueError where shards are missing, or are not what an earlier call wrote.
    """
    if missing := self.missing():
      raise ValueError(f"{self.folder}: {len(missing)} shards are not written, the first is {missing[0]}")
    notes = [read_record(self._note(shard)) for shard in range(self.shards)]
    for shard in self.earlier:
      written = {self.folder / name: about["checksum"] for name, about in notes[shard]["files"].items()}
      if path := changed(written):
        raise ValueError(f"{path} is not what was written, its checksum differs; delete {self._note(shard)}, run again")
    kinds = notes[0]["kinds"]
    if other := [i for i, note in enumerate(notes) if note["kinds"] != kinds]:
      raise ValueError(f"{self.folder}: shard {other[0]} holds {notes[other[0]]['kinds']}, shard 0 {kinds}")
    files = {name: entry for note in notes for name, entry in note["files"].items()}
    rows, unit = sum(note["rows"] for note in notes), all(note["normalised"] for note in notes)
    for left in self.folder.glob("*/*.tmp"):  # of hosts that died: nobody else would know
      left.unlink(missing_ok=True)
    write_record(self.folder / META, describe_shards(meta, rows=rows, kinds=kinds, normalised=unit, files=files))
    shutil.rmtree(self.notes)

  def _note(self, shard: int) -> Path:
    return self.notes / f"shard_{shard:04d}.json"

  def _put(self, files: dict, name: str, *pieces: Any, rows: int) -> None:
    path = self.folder / name
    path.parent.mkdir(exist_ok=True)
    files[name] = {"rows": rows, "checksum": write_whole(path, *pieces)}


class RowStream:
  """Chunks of rows, taken in pieces of any size."""

  def __init__(self, chunks: np.ndarray | Iterable[np.ndarray]) -> None:
    self.chunks = iter([chunks] if hasattr(chunks, "ndim") else chunks)
    self.rest = np.empty((0, 0))

  def take(self, rows: int) -> np.ndarray:
    """Returns the next `rows` rows, fewer at the end."""
    parts = [self.rest]
    while sum(map(len, parts)) < rows and (chunk := next(self.chunks, None)) is not None:
      parts.append(np.asarray(chunk))
    parts = [part for part in parts if part.size] or parts[:1]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    self.rest = whole[rows:].copy()  # a view would hold all of what was taken
    return whole[:rows]
