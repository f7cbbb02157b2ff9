"""A checkpoint's tensors to and from the towers' parameters: model.safetensors, whole or in shards, without PyTorch.

Read one tensor at a time, the largest first, so that loading takes little more memory than the weights themselves.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from qat_jax import stages
from qat_jax.encoders import names
from qat_jax.encoders.files import read_object, refuse_pointer
from qat_jax.encoders.settings import Text, Vision

SAFETENSORS, INDEX, MSGPACK = "model.safetensors", "model.safetensors.index.json", "flax_model.msgpack"
OPEN_CLIP, ADAPTER = "open_clip_model.safetensors", "adapter_config.json"

# The types of weights that are read, as safetensors and NumPy name them. Narrower numbers need scales of their
# own, which every program that quantises keeps elsewhere.
FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")


class Tensors:
  """The tensors of a checkpoint by name: their shapes and types, and their numbers when asked for."""

  def __init__(
    self, shapes: dict[str, tuple[int, ...]], kinds: dict[str, str], read: Callable[[str], np.ndarray], where: str
  ) -> None:
    self.shapes, self.kinds, self.read, self.where = shapes, kinds, read, where


def tensors(folder: pathlib.Path, family: str = "") -> Tensors:
  """Returns the tensors of a checkpoint's folder; reads shapes only.

  Raises FileNotFoundError where there are none or a shard is missing; ValueError that names a damaged file.
  """
  if family.startswith("open_clip"):
    if not (folder / OPEN_CLIP).is_file():
      raise FileNotFoundError(
        f"the folder {str(folder)!r} lacks {OPEN_CLIP}, the weights that open_clip_config.json describes; weights of "
        "PyTorch's own format (open_clip_pytorch_model.bin) are not read"
      )
    found = _safetensors([folder / OPEN_CLIP])
    return _renamed(
      found, {functools.reduce(lambda n, how: how[0].sub(how[1], n), names.RENAMED, n): n for n in found.shapes}
    )
  if (folder / SAFETENSORS).is_file():
    return _safetensors([folder / SAFETENSORS])
  if (folder / INDEX).is_file():
    places = read_object(folder / INDEX).get("weight_map")
    if not places or not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
      raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files; fetch it again")
    files = sorted(set(places.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
      raise FileNotFoundError(f"{folder / INDEX} names {', '.join(missing)}, not in the folder; fetch them too")
    return _safetensors([folder / file for file in files])
  if (folder / MSGPACK).is_file():
    return _msgpack(folder / MSGPACK)
  raise FileNotFoundError(
    f"the folder {str(folder)!r} lacks {SAFETENSORS} ({INDEX} with its shards, or {MSGPACK}, will do); weights of "
    "PyTorch's own format are not read: convert them with transformers' save_pretrained"
  )


def _safetensors(paths: list[pathlib.Path]) -> Tensors:
  from safetensors import SafetensorError, safe_open

  shapes: dict[str, tuple[int, ...]] = {}
  place: dict[str, pathlib.Path] = {}
  kinds: dict[str, str] = {}
  for path in paths:
    refuse_pointer(path)
    try:
      with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118, no mapping
          tensor = file.get_slice(name)
          if name in place:
            raise ValueError(f"{place[name]} and {path} both hold {name}; remove the shards of another checkpoint")
          shapes[name], place[name], kinds[name] = tuple(tensor.get_shape()), path, tensor.get_dtype()
    except SafetensorError as error:
      raise ValueError(f"{path} is damaged: {error}; {_lengths(path)}. Fetch or copy it again") from error

  def read(name: str) -> np.ndarray:
    # Opened anew for every tensor: what a mapping has read counts as memory until it is closed.
    with safe_open(place[name], "numpy") as file:
      return file.get_tensor(name)

  return Tensors(shapes, kinds, read, str(paths[0] if len(paths) == 1 else paths[0].parent))


def _renamed(found: Tensors, of: dict[str, str]) -> Tensors:
  """Returns tensors under other names: `of` has new name → name."""
  shapes, kinds = {name: found.shapes[of[name]] for name in of}, {name: found.kinds[of[name]] for name in of}
  return Tensors(shapes, kinds, lambda name: found.read(of[name]), found.where)


def _lengths(path: pathlib.Path) -> str:
  """Returns what a safetensors file says of its own length, and its length."""
  size = path.stat().st_size
  with open(path, "rb") as file:
    header = int.from_bytes(file.read(8), "little")
    if header > size - 8:
      return f"its header would have {header} bytes, the file has {size}"
    try:
      ends = [x["data_offsets"][1] for name, x in json.loads(file.read(header)).items() if name != "__metadata__"]
    except (ValueError, AttributeError, KeyError, IndexError, TypeError):
      return f"its header is no description of tensors; the file has {size} bytes"
  return f"by its header it has {8 + header + max(ends, default=0)} bytes, on disk {size}"


def _msgpack(path: pathlib.Path) -> Tensors:
  """Returns what transformers' Flax models wrote, which some older checkpoints on the hub have instead."""
  from flax.serialization import msgpack_restore

  refuse_pointer(path)
  try:
    tree = flatten_dict(msgpack_restore(path.read_bytes()))
  except Exception as error:  # msgpack raises many kinds
    raise ValueError(f"{path} is damaged ({error}); fetch or copy it again") from error
  found: dict[str, np.ndarray] = {}
  for (*parents, last), x in tree.items():
    if last == "kernel":
      x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    found[".".join([*parents, "weight" if last in ("kernel", "scale", "embedding") else last])] = x
  shapes, kinds = {name: x.shape for name, x in found.items()}, {name: str(x.dtype) for name, x in found.items()}
  return Tensors(shapes, kinds, found.__getitem__, str(path))


def load_weights(
  folder: pathlib.Path, vision: Vision, text: Text | None, family: str, dtype: str, place: Callable[[np.ndarray], Any]
) -> dict[str, Any]:
  """Returns the parameter tree of a checkpoint, each array where `place` puts it.

  Matrices and the words' embeddings are of `dtype`, the rest, which is small, is float32.

  Raises ValueError that names tensors which are missing, of a wrong shape or unknown.
  """
  if (folder / ADAPTER).is_file():
    raise ValueError(f"{folder / ADAPTER} changes the weights beside it; merge them (PEFT: merge_and_unload) and save")
  wanted, table = names.parameter_shapes(vision, text), names.tensor_names(family, vision, text)
  pieces = {path: names.pieces(path, x.shape, table, vision) for path, x in wanted.items()}
  found = _bare(tensors(folder, family), [piece.name for stacked in pieces.values() for piece in stacked if piece.name])
  _check(found, pieces)
  read = lambda name: _finite(found.read(name), name, found.where)
  rounded = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  loaded = {}
  for path in sorted(wanted, key=lambda path: -math.prod(wanted[path].shape)):
    shape = wanted[path].shape
    numbers = rounded if path[-1] in ("kernel", "words") else np.dtype(np.float32)
    if len(pieces[path]) == 1 and pieces[path][0].name:
      only = pieces[path][0]
      array = names.in_our_order(path, read(only.name), only.as_ours)
      array = array.reshape(shape).astype(numbers, order="C", copy=False)
    else:
      array, start = np.zeros(shape, numbers), 0
      for piece in pieces[path]:
        if piece.name:
          array[..., start : start + piece.columns] = names.in_our_order(path, read(piece.name), piece.as_ours)
        start += piece.columns
    loaded[path] = jax.block_until_ready(place(array))
  return unflatten_dict(loaded)


def _bare(found: Tensors, wanted: Sequence[str]) -> Tensors:
  """Returns tensors without what stands before all wanted names, as where a larger model held the checkpoint's."""
  befores = {name.removesuffix(wanted[0]) for name in found.shapes if name.endswith("." + wanted[0])}
  befores = {before for before in befores if all(before + name in found.shapes for name in wanted)}
  if wanted[0] in found.shapes or len(befores) != 1:
    return found
  (before,) = befores
  return _renamed(found, {name.removeprefix(before): name for name in found.shapes if name.startswith(before)})


def _finite(array: np.ndarray, name: str, where: str) -> np.ndarray:
  if not np.isfinite(array).all():
    raise ValueError(f"{where}: {name} has NaN or infinite numbers; take another copy or step of the checkpoint")
  return array


def _check(found: Tensors, pieces: Mapping[names.Path, list[names.TensorPiece]]) -> None:
  stored = {piece.name: piece.shape for stacked in pieces.values() for piece in stacked if piece.name}
  missing = [name for name in stored if name not in found.shapes]
  if missing:
    others = _few([name for name in found.shapes if name not in stored])
    held = f" and holds {others} instead" if others else ""
    raise ValueError(
      f"{found.where} lacks {_few(missing)}{held}; give a whole checkpoint, as its config.json describes it"
    )
  for name, shape in stored.items():
    got = found.shapes[name]
    if _without_ones(got) != _without_ones(shape):
      raise ValueError(
        f"{found.where}: {name} has the shape {got}, wanted {shape} by config.json; take both from one checkpoint"
      )
    if found.kinds[name] not in FLOATS:
      raise ValueError(
        f"{found.where}: {name} is of the type {found.kinds[name]}; wanted floats of 16 bits or more. Quantised "
        "weights are not read: take the checkpoint that they were made from"
      )
  more = [name for name in found.shapes if name not in stored and not names.PASSED_OVER.match(name)]
  if more:
    raise ValueError(
      f"{found.where} holds {_few(more)}, of which a model of its config.json has no use; its features would not be "
      "the model's own. Take config.json and weights from one checkpoint"
    )


def _few(items: list[str]) -> str:
  return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(size for size in shape if size != 1)


def save_weights(folder: str | os.PathLike, params: Mapping[str, Any], vision: Vision, family: str) -> None:
  """Writes a parameter tree as `model.safetensors` in the layout of transformers (float32)."""
  from safetensors.numpy import save as serialised

  stored: dict[str, np.ndarray] = {}
  table = names.tensor_names(family, vision, None)
  for path, x in flatten_dict(dict(params)).items():
    found, array = names.pieces(path, np.shape(x), table, vision), np.asarray(x, np.float32)
    pieces = np.split(array, len(found), axis=-1) if len(found) > 1 else [array]
    for stays, piece in zip(found, pieces, strict=True):
      stored[stays.name] = np.array(names.theirs(path, piece, vision.patch), order="C")
  stages.write_whole(pathlib.Path(folder) / SAFETENSORS, serialised(stored, metadata={"format": "pt"}))
