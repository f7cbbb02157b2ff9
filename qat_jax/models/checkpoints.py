"""Checkpoints of a run in progress, and what Orbax saved for earlier versions: the only file that imports it, on use.

A checkpoint is a folder named after its step: a safetensors file with the state, and checkpoint.json with the file's
checksum and a note. The folder gets its name when both are on disk. Earlier versions kept Orbax's files there instead,
and their checksums in checksums.json.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
import tqdm

from qat_jax.models.head import check_shapes, read_variables, write_variables
from qat_jax.sealed import check_format, read_record, write_record
from qat_jax.stages import checksum, sync_folder

FORMAT = 2  # of a checkpoint's folder; 1 is Orbax's
RECORD = "checkpoint.json"  # {"format": 2, "state": {"file", "checksum"}, "note": {…}}
NOTE, CHECKSUMS = "note.json", "checksums.json"  # of format 1; the second is {"version": 1, "files": {path: checksum}}
KEPT = 2  # checkpoints: the newest, and one to go back to if the newest is damaged
UNFINISHED = (".tmp", ".orbax-checkpoint-tmp")  # ends of the names of folders that are being written

Tree = TypeVar("Tree")  # a pytree of arrays


class Checkpoints:
  """The checkpoints of one run, of which the newest two are kept.

  One that is damaged or of an older kind is removed when they are opened, and a line says so; then the one before it
  counts. Of several processes only the first opens them.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    """Opens the folder, or makes it; raises ValueError if a checkpoint was written by a later version."""
    self.folder = folder.resolve()
    self.folder.mkdir(parents=True, exist_ok=True)
    for path in self.folder.iterdir():
      if path.name.endswith(UNFINISHED):
        shutil.rmtree(path, ignore_errors=True)
    for step in self._steps():
      path = self.folder / str(step)
      _check_format(path)
      if wrong := _wrong_with(path):
        shutil.rmtree(path)
        tqdm.tqdm.write(f"the checkpoint {path} is left out and removed: {wrong}; going on without it")

  def latest(self) -> pathlib.Path | None:
    """Returns the folder of the newest checkpoint; None if there is none."""
    steps = self._steps()
    return self.folder / str(steps[-1]) if steps else None

  def save(self, step: int, state: object, note: Mapping[str, object] | None = None) -> None:
    """Saves a pytree of arrays with a note (JSON); raises OSError that says so if the disk is full."""
    path = self.folder / str(step)
    temporary = path.with_name(f"{step}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
      written = write_variables(temporary, {"state": jax.device_get(state)})
      write_record(temporary / RECORD, {"format": FORMAT, "state": written, "note": note or {}})
      os.replace(temporary, path)
    except OSError:
      shutil.rmtree(temporary, ignore_errors=True)
      raise
    sync_folder(self.folder)
    for old in self._steps()[:-KEPT]:
      shutil.rmtree(self.folder / str(old))

  def note(self) -> dict[str, Any]:
    """Returns the note of the newest checkpoint; an empty one if there is none."""
    path = self.latest()
    if path is None:
      return {}
    if (path / RECORD).exists():
      return read_record(path / RECORD)["note"]
    return read_record(path / NOTE) if (path / NOTE).exists() else {}

  def restore(self, start: Tree) -> Tree:
    """Returns the newest checkpoint (NumPy) in the shape of `start`; `start` itself if there is none.

    Raises ValueError if the checkpoint's shapes differ from those of `start`: it is another model's.
    """
    path = self.latest()
    if path is None:
      return start
    if not (path / RECORD).exists():
      return read_tree(path / "state", jax.tree.map(np.asarray, start))
    return read_variables(path, read_record(path / RECORD)["state"], {"state": start})["state"]

  def _steps(self) -> list[int]:
    return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())


def _check_format(path: pathlib.Path) -> None:
  """Raises ValueError if a checkpoint is of a later format: it is not damaged, and must stay."""
  for name, entry, newest in ((RECORD, "format", FORMAT), (CHECKSUMS, "version", 1)):
    if (path / name).exists():
      try:
        number = read_record(path / name).get(entry)
      except ValueError:
        return  # it is damaged
      check_format(path / name, number, newest, "delete the checkpoint")


def _wrong_with(path: pathlib.Path) -> str:
  """Returns in words what is wrong with a checkpoint's files; nothing if they are as they were written."""
  try:
    if (path / RECORD).exists():
      about = read_record(path / RECORD)["state"]
      written = {about["file"]: about["checksum"]}
    elif (path / CHECKSUMS).exists():
      written = read_record(path / CHECKSUMS)["files"]
    else:
      return f"it has no {RECORD}, so it was not finished, or is of an earlier version"
    paths = [one for one in path.rglob("*") if one.is_file() and one.name not in (RECORD, CHECKSUMS)]
    there = {one.relative_to(path).as_posix(): checksum(one) for one in paths}
    differing = sorted(name for name in written.keys() | there.keys() if written.get(name) != there.get(name))
  except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
    return f"its record cannot be read ({error})"
  return f"{differing[0]} is not what was written" if differing else ""


def read_tree(folder: pathlib.Path, wanted: Tree) -> Tree:
  """Returns the pytree of arrays (NumPy) that Orbax saved to a folder, in the shape of `wanted`.

  Raises ValueError if it is missing, broken, or has other shapes.
  """
  alone = orbax().options.MultiprocessingOptions(  # without it, Orbax would wait for the other processes of a training
    primary_host=jax.process_index(), active_processes={jax.process_index()} if jax.process_count() > 1 else None
  )
  try:
    with orbax().StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
      saved = checkpointer.metadata(folder).item_metadata
      if saved is not None:
        check_shapes(saved.tree, wanted, folder)
        return jax.device_get(checkpointer.restore(folder, wanted))
  except (OSError, KeyError, TypeError) as error:
    raise ValueError(f"{folder} is incomplete or broken ({error}); save the adapter again") from error
  raise ValueError(f"{folder} is missing or incomplete; save the adapter again")


def orbax() -> ModuleType:
  """Returns orbax.checkpoint; raises ImportError that says how to get it."""
  try:
    import orbax.checkpoint
  except ImportError as error:
    raise ImportError("files of earlier versions need Orbax; install it with: pip install 'qat-jax[train]'") from error
  return orbax.checkpoint
