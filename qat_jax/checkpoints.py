"""Checkpoints of a run in progress, and adapters as orbax saved them: the only file that imports orbax, on use."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

import jax

from qat_jax.models.head import check_shapes
from qat_jax.stages import check_same, fingerprint, write_json

MADE_WITH = "made_with.json"

Tree = TypeVar("Tree")  # a pytree of arrays


class Checkpoints:
  """The checkpoints of one run: saved asynchronously, the newest two kept."""

  def __init__(self, folder: pathlib.Path, made_with: Mapping[str, object] | None = None) -> None:
    """Opens the folder, or makes it. `made_with` is the fingerprint of all that the run reads, kept beside the states.

    Raises ValueError where there are checkpoints of another fingerprint.
    """
    self._orbax = orbax()
    options = self._orbax.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=True)
    self.folder = folder.resolve()
    self.manager = self._orbax.CheckpointManager(
      self.folder, options=options, item_handlers={"state": self._orbax.StandardCheckpointHandler()}
    )
    if made_with is not None:
      self._check_made_with(fingerprint(**made_with))

  def latest(self) -> pathlib.Path | None:
    """Returns the folder of the newest whole checkpoint, or None."""
    self.manager.wait_until_finished()
    step = self.manager.latest_step()
    return None if step is None else self.folder / str(step)

  def save(self, step: int, state: object) -> None:
    """Starts to save a pytree of arrays; returns before it is on disk."""
    self.manager.save(step, args=self._orbax.args.Composite(state=self._orbax.args.StandardSave(state)))

  def restore(self, start: Tree) -> Tree:
    """Returns the newest checkpoint, in the shape of `start`; `start` itself if there is none.

    Raises ValueError if the checkpoint's shapes differ from those of `start`: another model's.
    """
    step = self.manager.latest_step()
    if step is None:
      return start
    check_shapes(self.manager.item_metadata(step)["state"].tree, start, self.folder / str(step))
    wanted = self._orbax.args.Composite(state=self._orbax.args.StandardRestore(start))
    return self.manager.restore(step, args=wanted)["state"]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self.manager.close()

  def _check_made_with(self, wanted: dict[str, Any]) -> None:
    path = self.folder / MADE_WITH
    if self.manager.latest_step() is not None:
      begun = json.loads(path.read_text()) if path.exists() else {}
      check_same(f"the run in {self.folder}", begun, wanted, "Use another --workdir, or delete this folder")
    else:
      write_json(path, wanted)


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
