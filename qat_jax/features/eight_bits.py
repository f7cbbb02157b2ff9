"""An 8-bit copy of a store's features beside them, which streamed searches read first: half the bytes of float16.

`img_emb/img_emb_0000.int8` goes with the shard of that name: the rows' values (ND, int8), then scale, error and step
error of each (N3, float32). `img_emb/eight_bits.json` comes last. It has what all share, and of each shard and its copy
the checksum, and the state of the file on this disk. A copy of other features is never used: where a state is another
one, checksums are compared, once a process.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qat_jax.features.shards import Shard, ShardedRows
from qat_jax.sealed import UNREADABLE, check_format, read_record, write_record
from qat_jax.search.coarse import LEAST_NUMBERS, SAMPLE, WIDEST, Coarse, Trial, copied_by, grid, left_out
from qat_jax.search.gallery import check_lengths
from qat_jax.stages import SETTLED_NS, changed, write_whole

FORMAT = 1
RECORD = "eight_bits.json"
ENDING = ".int8"
ROWS = 1 << 14  # that are copied at once
SIZES = 3  # numbers in float32 beside each row's values
ADVICE = "qat-jax eight-bits writes it anew"

_log = logging.getLogger(__name__)


class EightBits:
  """The copy of a store's features, read where it is asked for; `lengths` are the least and the greatest |z|²."""

  def __init__(self, rows: ShardedRows, record: dict[str, Any]) -> None:
    """Raises ValueError or OSError, which names a file, where the record's copy is not one of these rows."""
    folder = rows.shards[0].path.parent
    check_format(folder / RECORD, record.get("format"), FORMAT, ADVICE)
    names, about = [shard.path.name for shard in rows.shards], record["shards"]
    if [one["name"] for one in about] != names or record["width"] != rows.width:
      raise ValueError(f"{folder / RECORD} is of other shards than those in its folder")
    self._states: dict[Path, list[int]] = {}
    self._written: dict[Path, str] = {}
    values, sizes, moved = [], [], {}
    for shard, one in zip(rows.shards, about, strict=True):
      path, size = shard.path.with_suffix(ENDING), shard.rows * (rows.width + 4 * SIZES)
      for file, key in ((shard.path, "features"), (path, "copy")):
        self._states[file], self._written[file] = _state(file), one[key]["checksum"]
        if one[key]["state"] != self._states[file]:
          moved[file] = self._written[file]
      stamp = tuple(self._states[path][:3])
      if self._states[path][1] != size or tuple(self._states[shard.path][:3]) != shard.stamp:
        raise ValueError(f"{path} or {shard.path.name} is not as long as it was, or was changed just now")
      values.append(Shard(path, shard.rows, rows.width, np.dtype(np.int8), 0, stamp))
      sizes.append(Shard(path, shard.rows, SIZES, np.dtype(np.float32), shard.rows * rows.width, stamp))
    _compare(moved)
    self._values, self._sizes = ShardedRows(values), ShardedRows(sizes)
    self._common = *(np.array(record[name], np.float32) for name in ("centre", "step")), np.float32(record["reach"])
    self.width, self.lengths, self.trial = rows.width, np.array(record["lengths"], np.float32), Trial()

  def __getitem__(self, rows: slice) -> Coarse:
    """Returns the copy of consecutive items, on the host."""
    return Coarse(self._values[rows], *self._sizes[rows].T, *self._common)  # type: ignore[arg-type]

  def check(self) -> None:
    """Raises OSError that names a file, of features or of the copy, which was changed since this was opened."""
    for path, state in self._states.items():
      if _state(path) != state:
        raise OSError(f"{path} was changed while it was open; open its store again")

  def verify(self) -> None:
    """Raises ValueError that names a file, of features or of the copy, whose checksum is another one; reads all."""
    _compare(self._written)


def open_eight_bits(rows: ShardedRows) -> EightBits | None:
  """Returns the copy beside a store's shards; None where there is none, or a line of the log says what is wrong."""
  path = rows.shards[0].path.parent / RECORD
  if not path.exists():
    return None
  try:
    return EightBits(rows, read_record(path))
  except (OSError, *UNREADABLE) as error:
    _log.warning("the 8-bit copy in %s is left out, and features are read instead: %s; %s", path.parent, error, ADVICE)
    return None


def make_worthwhile(rows: ShardedRows) -> None:
  """Makes the copy of a gallery large enough, in a folder that the caller has locked, unless there is one that fits.

  Where there is no room, a line of the log says so: searches read the features.
  """
  if len(rows) * rows.width < LEAST_NUMBERS or rows.width > WIDEST or left_out() or open_eight_bits(rows) is not None:
    return
  try:
    make(rows)
  except OSError as error:
    _log.warning("the gallery is written, without an 8-bit copy: %s", error)


def make(rows: ShardedRows) -> None:
  """Writes the 8-bit copy of a store of unit rows, anew where there is one, in a folder that the caller has locked.

  Without its record, which is written last, there is no copy. Two shards' copies are held in memory. Raises ValueError
  that names an item which is NaN or not of unit length, OSError for a shard that was changed meanwhile.
  """
  if rows.width > WIDEST:
    raise ValueError(f"the features are {rows.width} wide; an 8-bit copy has up to {WIDEST} dimensions")
  record = rows.shards[0].path.parent / RECORD
  record.unlink(missing_ok=True)
  some = min(SAMPLE, len(rows))
  common = grid(jnp.asarray(rows[np.arange(some) * (len(rows) // some)]))
  lengths, reach, begun, first = [], 0.0, [], 0
  with concurrent.futures.ThreadPoolExecutor(1) as beside:  # who writes one shard while the next is computed
    for shard in rows.shards:
      before, digest = _state(shard.path), hashlib.blake2b(digest_size=16)  # as stages.checksum has it
      with open(shard.path, "rb") as file:
        digest.update(file.read(shard.offset))
      values_ND, sizes_N3 = np.empty((shard.rows, rows.width), np.int8), np.empty((shard.rows, SIZES), np.float32)
      for start in range(0, shard.rows, ROWS):
        at = slice(start, min(start + ROWS, shard.rows))
        block_BD = rows[first + at.start : first + at.stop]
        beside.submit(digest.update, block_BD.data)
        copy, square_B = copied_by(jnp.asarray(block_BD), *common)
        lengths.append(check_lengths(square_B, first + start, rows.width))
        values_ND[at], sizes_N3[at] = copy.values, np.stack(copy[1:4], axis=1)
        reach = max(reach, float(copy.reach))
      begun.append(beside.submit(_written, shard, before, digest, values_ND, sizes_N3))
      first += shard.rows
      if len(begun) > 1:
        begun[-2].result()  # no more than two are in memory
  shards = [future.result() for future in begun]
  for one in (shard[key] for shard in shards for key in ("features", "copy")):
    if time.time_ns() - max(one["state"][2:]) < SETTLED_NS:  # it may change again and look the same
      one["state"] = None
  centre, step = (np.asarray(x).tolist() for x in common)
  about = {"centre": centre, "step": step, "reach": reach}
  about["lengths"] = [float(np.min(lengths)), float(np.max(lengths))]
  write_record(record, {"format": FORMAT, "width": rows.width, **about, "shards": shards})


def _written(shard: Shard, before: list[int], digest: Any, *pieces: np.ndarray) -> dict[str, Any]:
  """Writes the copy of a shard, and returns the record's entry of it; raises OSError where the shard has changed."""
  path = shard.path.with_suffix(ENDING)
  features, copy = digest.hexdigest(), write_whole(path, *pieces)
  if _state(shard.path) != before:
    raise OSError(f"{shard.path} was changed while its copy was made; make it again")
  files = {"features": (before, features), "copy": (_state(path), copy)}
  return {"name": shard.path.name} | {key: {"state": x, "checksum": y} for key, (x, y) in files.items()}


def _compare(written: dict[Path, str]) -> None:
  if other := changed(written):
    raise ValueError(f"{other} is not what it was when the copy was made: its checksum differs; {ADVICE}")


def _state(path: Path) -> list[int]:
  """Returns what changes with a file: which one it is, its size, and when it and what is known of it were changed."""
  about = path.stat()
  return [about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
