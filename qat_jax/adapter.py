"""What is kept of training: checkpoints of a run, and the `Adapter` that serves. The only file that imports orbax."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from qat_jax.features.shards import is_unit
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.models import forms as hypernetwork
from qat_jax.models import quari as released
from qat_jax.models import quari_files as released_files
from qat_jax.stages import checksum, write_whole
from qat_jax.types import QUERY_TYPES, Adaptation

QUERY_BLOCK = 1024  # queries adapted at once
SAMPLE_ROWS = 1024  # gallery rows whose length tells whether the gallery is normalised
PREPARE_ROWS = 65536  # gallery rows mapped at once


class Checkpoints:
  """The checkpoints of one run: saved asynchronously, the newest two kept."""

  def __init__(self, folder: pathlib.Path) -> None:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=True)
    self.folder = folder.resolve()
    self.manager = ocp.CheckpointManager(
      self.folder, options=options, item_handlers={"state": ocp.StandardCheckpointHandler()}
    )

  def latest(self) -> pathlib.Path | None:
    """Returns the folder of the newest whole checkpoint, or None."""
    self.manager.wait_until_finished()
    step = self.manager.latest_step()
    return None if step is None else self.folder / str(step)

  def save(self, step: int, state: Any) -> None:
    """Starts to save a pytree of arrays; returns before it is on disk."""
    self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

  def restore(self, start: Any) -> Any:
    """Returns the newest checkpoint, in the shape of `start`; `start` itself if there is none.

    Raises ValueError if the checkpoint's shapes differ from those of `start`: another model's.
    """
    step = self.manager.latest_step()
    if step is None:
      return start
    saved = self.manager.item_metadata(step)["state"].tree
    _check_shapes(saved, start, self.folder / str(step))
    return self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(start)))["state"]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self.manager.close()


def _check_shapes(saved: Any, wanted: Any, folder: pathlib.Path) -> None:
  def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in leaves}

  got, want = shapes(saved), shapes(wanted)
  for name in sorted(got.keys() | want.keys()):
    if got.get(name) != want.get(name):
      raise ValueError(
        f"the checkpoint {folder} has {got.get(name, 'nothing')} for {name}, the model wants "
        f"{want.get(name, 'nothing')}: it is another model's. Use another --workdir, or the config it was made with"
      )


@dataclasses.dataclass(frozen=True)
class Head:
  """What serves one query type: a form and its variables."""

  form: str  # a key of hypernetwork.FORMS
  settings: dict  # the form's keyword arguments
  variables: dict  # {"params": …, "constants": …}

  def module(self, width: int) -> nn.Module:
    """Returns the form's Linen module."""
    return hypernetwork.FORMS[self.form](width, **self.settings)

  @functools.cached_property
  def space(self) -> str:
    """The gallery that the head is for: `frozen`, or the name of its own map of the gallery."""
    gallery_map = self.variables.get("params", {}).get("gallery_map")
    if gallery_map is None:
      return "frozen"
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(gallery_map):
      digest.update(np.asarray(leaf, np.float32).tobytes())
    return f"mapped-{digest.hexdigest()}"


class Adapter:
  """Frozen query features → `Adaptation`: a head for each query type, and what they were trained on.

  `info` is free provenance: encoder, config, versions, and what the validation gate chose.
  """

  def __init__(self, width: int, heads: dict[str, Head], info: dict | None = None) -> None:
    unknown = set(heads) - set(QUERY_TYPES)
    if unknown or not heads:
      raise ValueError(f"an adapter has heads for {sorted(heads)}; wanted one or both of {QUERY_TYPES}")
    self.width, self.heads, self.info = width, dict(heads), dict(info or {})
    self._calls = {name: _jitted(head, width) for name, head in self.heads.items()}
    self._on_device: dict[str, dict] = {}  # variables, once they are used: a memory's pairs are no small transfer

  @property
  def params(self) -> dict:
    """The parameter tree: {query type: variables}."""
    return {name: head.variables for name, head in self.heads.items()}

  def head(self, query_type: str | None) -> Head:
    """Returns the head of a query type; None means text where there is a text head, else image."""
    if query_type is None:
      query_type = next(name for name in QUERY_TYPES if name in self.heads)
    if query_type not in self.heads:
      raise ValueError(f"query_type is {query_type!r}, but this adapter has heads for {sorted(self.heads)} only")
    return self.heads[query_type]

  def __call__(self, query_QD: jax.Array | np.ndarray, query_type: str | None = None) -> Adaptation:
    """Returns the adaptation of Q queries (QD, frozen features of the adapter's encoder; any float dtype).

    Any number of queries runs without compiling anew for each: blocks are padded to a power of two.
    Raises ValueError for another width, no queries, or a query with NaN or of length zero, named by its position.
    """
    head = self.head(query_type)
    name = next(name for name, one in self.heads.items() if one is head)
    query_QD = np.asarray(query_QD)
    check_queries(query_QD, self.width)
    if name not in self._on_device:
      self._on_device[name] = jax.device_put(head.variables)
    blocks = []
    for start in range(0, len(query_QD), QUERY_BLOCK):
      block_QD = query_QD[start : start + QUERY_BLOCK].astype(np.float32)
      size = 1 << (len(block_QD) - 1).bit_length()
      padded_QD = np.concatenate([block_QD, np.broadcast_to(block_QD[-1:], (size - len(block_QD), self.width))])
      adaptation = self._calls[name](self._on_device[name], jnp.asarray(padded_QD))
      blocks.append(adaptation if size == len(block_QD) else adaptation[: len(block_QD)])
    whole = blocks[0] if len(blocks) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *blocks)
    return whole.replace(space=head.space)

  def prepare(self, gallery: Any, query_type: str | None = None, folder: str | os.PathLike | None = None) -> Any:
    """Returns the gallery that this adapter's queries are scored against; offline, once.

    An array (ND) gives an array (float32, unit). A FeatureStore comes back as it is where nothing is to be done;
    where the head maps the gallery, or it is not normalised, the new features are written to `folder`, which remembers
    what was applied.
    Raises ValueError if the store was prepared by another adapter, or if `folder` is wanted and missing.
    """
    head = self.head(query_type)
    module = head.module(self.width)
    if not isinstance(gallery, FeatureStore):
      return _prepare(module, head.variables, jnp.asarray(gallery))
    if gallery.width != self.width:
      raise ValueError(f"the gallery {gallery.folder} is {gallery.width} wide; this adapter wants {self.width}")
    if gallery.space == head.space and is_unit(gallery[:SAMPLE_ROWS]):
      return gallery
    if gallery.space != "frozen":
      raise ValueError(
        f"the gallery {gallery.folder} was prepared by another adapter ({gallery.space}); give prepare() the frozen one"
      )
    if folder is None:
      what = "the adapter maps the gallery" if head.space != "frozen" else "the gallery's rows are not of unit length"
      raise ValueError(f"{what}, so it has to be written anew; say where: prepare(gallery, folder=…)")
    mapped = (
      np.asarray(_prepare(module, head.variables, jnp.asarray(chunk_ND)), gallery.dtype)
      for _, chunk_ND in gallery.chunks(PREPARE_ROWS)
    )
    meta = {**gallery.meta, "space": head.space, "normalised": True}
    return write_features(folder, {gallery.kind: mapped}, gallery.metadata(), meta=meta)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the adapter to a folder, whole or not at all; an adapter that was there is replaced, the rest stays.

    `adapter.json` comes last and goes first: without it there is no adapter in the folder.
    """
    folder = pathlib.Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "params.incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    heads = {name: {"form": head.form, "settings": head.settings} for name, head in self.heads.items()}
    about = {"format": 1, "width": self.width, "heads": heads, "info": self.info}
    trained = {name: tree for name, tree in self.params.items() if jax.tree.leaves(tree)}
    if trained:
      with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(temporary, trained)
    (folder / "adapter.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "params", ignore_errors=True)
    if trained:
      os.replace(temporary, folder / "params")
    write_whole(folder / "adapter.json", (json.dumps(about, indent=2) + "\n").encode())


def load(path: str | os.PathLike, revision: str | None = None) -> Adapter:
  """Returns the adapter in a run's folder, in an exported adapter's own, or in a released QuARI checkpoint.

  `path` may be `hf://owner/name`, a released checkpoint on the Hugging Face hub, of the `revision` wanted.
  Raises FileNotFoundError if there is none, ValueError if its parameters do not fit what it says it is.
  """
  address = str(path)
  if address.startswith("hf://"):
    folder = released_files.download(address, revision)
    return _load_released(folder, f"{address}@{folder.name}")
  if revision is not None:
    raise ValueError(f"revision is {revision!r}, but {path} is no address on the hub; leave it out")
  path = pathlib.Path(path).resolve()
  folder = path if (path / "adapter.json").exists() else path / "adapter"
  if not (folder / "adapter.json").exists():
    if released_files.is_released(path):
      return _load_released(path, path.name)
    raise FileNotFoundError(
      f"no adapter in {path}: neither adapter.json nor adapter/adapter.json. Train one with "
      "python -m train.main --config configs/demo.py --workdir …"
    )
  about = json.loads((folder / "adapter.json").read_text())
  width = about["width"]
  empty = {name: Head(head["form"], head["settings"], {}) for name, head in about["heads"].items()}
  wanted = {name: jax.eval_shape(functools.partial(_initialise, head, width)) for name, head in empty.items()}
  variables = dict(wanted)
  trained = {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)}
  if trained:
    with ocp.StandardCheckpointer() as checkpointer:
      _check_shapes(checkpointer.metadata(folder / "params").item_metadata.tree, trained, folder / "params")
      variables |= jax.device_get(checkpointer.restore(folder / "params", trained))
  heads = {name: dataclasses.replace(head, variables=variables[name]) for name, head in empty.items()}
  return Adapter(width, heads, about["info"])


def _load_released(folder: pathlib.Path, source: str) -> Adapter:
  for name in released_files.FILES:
    if not (folder / name).exists():
      raise FileNotFoundError(
        f"{folder} lacks {name}; a released checkpoint has {released_files.FILES}: fetch it again"
      )
  config = released_files.read_config(folder / "config.yml")
  variables = released.variables(released_files.read_weights(folder / "weights.pt"), config)
  head = Head("released", released.settings(config), variables)
  checksums = {name: checksum(folder / name) for name in released_files.FILES}
  info = {"encoder": config.feature_extractor, "source": source, "checksums": checksums}
  return Adapter(config.embedding_dim, dict.fromkeys(QUERY_TYPES, head), info)


def check_queries(query_QD: np.ndarray, width: int) -> None:
  """Raises ValueError unless the queries are Q ≥ 1 finite, non-zero rows of the width wanted."""
  if query_QD.ndim != 2 or query_QD.shape[1] != width or not np.issubdtype(query_QD.dtype, np.floating):
    raise ValueError(f"queries are {query_QD.dtype} {query_QD.shape}; wanted floats of shape (Q, {width})")
  if len(query_QD) == 0:
    raise ValueError("there are no queries: the array has 0 rows; give at least one")
  square_Q = np.square(query_QD.astype(np.float32)).sum(axis=1)
  broken = np.flatnonzero(~np.isfinite(square_Q) | (square_Q == 0))
  if len(broken):
    raise ValueError(f"query {broken[0]} is NaN, infinite or zero (and {len(broken) - 1} more); leave such queries out")


def _initialise(head: Head, width: int) -> dict:
  return hypernetwork.initialise(head.module(width), jax.random.key(0))


def _jitted(head: Head, width: int) -> Callable[[dict, jax.Array], Adaptation]:
  module = head.module(width)
  return jax.jit(lambda variables, query_QD: module.apply(variables, query_QD))


@functools.partial(jax.jit, static_argnums=0)
def _prepare(module: nn.Module, variables: dict, gallery_ND: jax.Array) -> Any:
  return module.apply(variables, gallery_ND, method="prepare")
