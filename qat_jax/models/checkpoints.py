"""Checkpoints of a run in progress, and adapters as orbax saved them: the only file that imports orbax, on use."""

import contextlib
import errno
import gc
import logging
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
import tqdm

from qat_jax.models.head import check_shapes
from qat_jax.sealed import check_format, read_record, write_record
from qat_jax.stages import check_same, checksum, fingerprint

MADE_WITH = "made_with.json"
NOTE = "note.json"
CHECKSUMS = "checksums.json"  # in a checkpoint's folder, written last: {"version": 1, "files": {path: checksum}}
VERSION = 1  # of the checksums; orbax's own format is its own
HALF = ".orbax-checkpoint-tmp"  # what orbax calls a checkpoint that is being written

Tree = TypeVar("Tree")  # a pytree of arrays


class Checkpoints:
  """The checkpoints of one run, each with the checksums of its files; the newest two are kept.

  One that is damaged or unfinished is removed when they are opened, and a line says so: the one before it counts. Where
  there are several processes, the first alone opens them.
  """

  def __init__(self, folder: pathlib.Path, made_with: Mapping[str, object] | None = None) -> None:
    """Opens the folder, or makes it. `made_with` is the fingerprint of all that the run reads, kept beside the states.

    Raises ValueError where there are checkpoints of another fingerprint, or of a later version.
    """
    self._orbax = orbax()
    self.folder = folder.resolve()
    _remove_damaged(self.folder)
    # not asynchronous: what goes wrong while it writes would be told by its threads, in hundreds of lines
    self.folder.mkdir(parents=True, exist_ok=True)
    alone = self._alone()
    options = self._orbax.CheckpointManagerOptions(
      max_to_keep=2, create=False, enable_async_checkpointing=False, multiprocessing_options=alone
    )
    handler = self._orbax.StandardCheckpointHandler(multiprocessing_options=alone)
    self.manager = self._orbax.CheckpointManager(self.folder, options=options, item_handlers={"state": handler})
    path, wanted = self.folder / MADE_WITH, fingerprint(**(made_with or {}))
    if made_with is not None and self.manager.latest_step() is None:
      write_record(path, wanted)
    elif made_with is not None:
      begun = read_record(path) if path.exists() else {}
      check_same(f"the run in {self.folder}", begun, wanted, "Use another --workdir, or delete this folder")

  def latest(self) -> pathlib.Path | None:
    """Returns the folder of the newest whole checkpoint, or None."""
    step = self.manager.latest_step()
    return None if step is None else self.folder / str(step)

  def save(self, step: int, state: object, note: Mapping[str, object] | None = None) -> None:
    """Saves a pytree of arrays, and a note (JSON) beside it.

    Raises OSError that says so where the disk is full, or cannot be written.
    """
    state = _on_host(state)
    folder = self.folder / str(step)
    size, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
    if size > free:
      raise OSError(errno.ENOSPC, _no_room(folder, size, f"the disk has {free / 1e6:.1f} MB"))
    with _told_once(folder, size):
      self.manager.save(step, args=self._orbax.args.Composite(state=self._orbax.args.StandardSave(state)))
      self.manager.wait_until_finished()
    write_record(folder / NOTE, note or {})
    write_record(folder / CHECKSUMS, {"version": VERSION, "files": _checksums(folder)})

  def note(self) -> dict[str, Any]:
    """Returns the note beside the newest checkpoint; an empty one where there is none."""
    folder = self.latest()
    return {} if folder is None or not (folder / NOTE).exists() else read_record(folder / NOTE)

  def restore(self, start: Tree) -> Tree:
    """Returns the newest checkpoint (NumPy), in the shape of `start`; `start` itself if there is none.

    Raises ValueError if the checkpoint's shapes differ from those of `start`: another model's.
    """
    step = self.manager.latest_step()
    if step is None:
      return start
    check_shapes(self.manager.item_metadata(step)["state"].tree, start, self.folder / str(step))
    wanted = self._orbax.args.Composite(state=self._orbax.args.StandardRestore(_on_host(start)))
    return self.manager.restore(step, args=wanted)["state"]

  def close(self) -> None:
    """Ends what orbax has running."""
    self.manager.close()

  def _alone(self) -> Any:
    """Returns orbax's settings with which it does not wait for other processes."""
    processes = {jax.process_index()} if jax.process_count() > 1 else None
    settings = self._orbax.options.MultiprocessingOptions
    return settings(primary_host=jax.process_index(), active_processes=processes)


def _on_host(tree: Tree) -> Tree:
  return jax.tree.map(np.asarray, tree)


def _remove_damaged(folder: pathlib.Path) -> None:
  for half in folder.glob(f"*{HALF}"):
    shutil.rmtree(half, ignore_errors=True)
  for step in sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal()):
    _check_version(folder / str(step) / CHECKSUMS)
    if wrong := _wrong_with(folder / str(step)):
      shutil.rmtree(folder / str(step))
      tqdm.tqdm.write(f"the checkpoint {folder / str(step)} is left out and removed: {wrong}; going on without it")


def _check_version(path: pathlib.Path) -> None:
  """Raises ValueError where a checkpoint's checksums are of a later version: nothing is wrong with it."""
  with contextlib.suppress(FileNotFoundError):
    try:
      version = read_record(path).get("version")
    except ValueError:
      return  # damaged
    check_format(path, version, VERSION, "delete the checkpoint")


def _wrong_with(folder: pathlib.Path) -> str:
  """Returns what is wrong with a checkpoint's files, in words; nothing where they are as they were written."""
  path = folder / CHECKSUMS
  if not path.exists():
    return f"it has no {CHECKSUMS}, so it was not finished, or is of an earlier version"
  try:
    about = read_record(path)
    there = _checksums(folder)
    differing = sorted(
      name for name in about["files"].keys() | there.keys() if about["files"].get(name) != there.get(name)
    )
  except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
    return f"{path.name} cannot be read ({error})"
  return f"{differing[0]} is not what was written" if differing else ""


def _checksums(folder: pathlib.Path) -> dict[str, str]:
  paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
  return {path.relative_to(folder).as_posix(): checksum(path) for path in paths}


def _no_room(folder: pathlib.Path, size: int, more: str) -> str:
  return f"no room for the checkpoint {folder} ({size / 1e6:.1f} MB; {more}); free some space and run again"


@contextlib.contextmanager
def _told_once(folder: pathlib.Path, size: int) -> Iterator[None]:
  """Raises OSError, with a short message, for what orbax raises as it writes; its threads' own reports are dropped."""
  hooks, shown = (threading.excepthook, sys.unraisablehook), sys.excepthook
  levels = {name: logging.getLogger(name).level for name in ("asyncio", "absl")}
  threading.excepthook = lambda _: None
  sys.unraisablehook = lambda _: None
  sys.excepthook = shown if isinstance(shown, _ButLateThreads) else _ButLateThreads(shown)
  for name in levels:
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)
  text = ""
  try:
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      text = " ".join(str(error).split())
    if text:
      gc.collect()  # tasks that failed complain when they are collected
    else:
      sys.excepthook = shown  # after a failure it stays: some threads report when this is over
  finally:
    threading.excepthook, sys.unraisablehook = hooks
    for name, level in levels.items():
      logging.getLogger(name).setLevel(level)
  if "No space left" in text or "RESOURCE_EXHAUSTED" in text or "quota" in text.lower():
    raise OSError(errno.ENOSPC, _no_room(folder, size, "it got full while it was written"))
  if text:
    raise OSError(f"the checkpoint {folder} cannot be written: {text[:300]}")


class _ButLateThreads:
  """A hook that leaves out what threads of a write that failed report later, when nobody waits for them any more."""

  def __init__(self, hook: Callable[[type[BaseException], BaseException, TracebackType | None], object]) -> None:
    self.hook = hook

  def __call__(self, kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
      self.hook(kind, error, where)


def read_tree(folder: pathlib.Path, wanted: Tree) -> Tree:
  """Returns the pytree of arrays (NumPy) that orbax saved to a folder, in the shape of `wanted`.

  Raises ValueError where it is missing, broken, or has other shapes.
  """
  try:
    with orbax().StandardCheckpointer() as checkpointer:
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
    raise ImportError("checkpoints of training need orbax; install it with: pip install 'qat-jax[train]'") from error
  return orbax.checkpoint
