"""The files of a released QuARI checkpoint: `config.yml` and `weights.pt`, read without PyTorch.

A `weights.pt` is a zip archive: a pickle that describes the tensors, and one file of raw numbers for each. A pickle is
a program, so this one may name only what describes a tensor; anything else is refused before it runs.
"""

import collections
import dataclasses
import io
import math
import os
import pathlib
import pickle
import typing
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import yaml

FILES = ("config.yml", "weights.pt")
LARGEST_PICKLE = 16 << 20  # bytes; a real one has some 20 kB
_STORAGES = {
  "FloatStorage": np.dtype("<f4"),
  "DoubleStorage": np.dtype("<f8"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class ReleasedConfig:
  """What `config.yml` says."""

  feature_extractor: str
  anchor_scale: float
  dropout: float
  embedding_dim: int
  hidden_dim: int
  low_rank_dim: int
  nhead: int
  num_layers: int
  num_steps: int
  query_residual_weight: float
  use_fro_norm: bool


def is_released(folder: pathlib.Path) -> bool:
  """Returns whether a folder holds a released checkpoint: either of its two files."""
  return any((folder / name).exists() for name in FILES)


def read_config(path: str | os.PathLike) -> ReleasedConfig:
  """Returns the settings in a `config.yml`; raises ValueError that names an unknown, missing or ill-typed key."""
  try:
    content = yaml.safe_load(pathlib.Path(path).read_text())
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is not YAML ({error}); fetch it again") from error
  kinds = typing.get_type_hints(ReleasedConfig)
  _check_keys(path, content, {"feature_extractor": kinds.pop("feature_extractor"), "hparams": dict})
  hparams = content["hparams"]
  _check_keys(f"{path}, hparams", hparams, kinds)
  config = ReleasedConfig(content["feature_extractor"], **hparams)
  small = [name for name, kind in kinds.items() if kind is int and getattr(config, name) < 1]
  if small:
    raise ValueError(f"{path} says {small[0]} is {getattr(config, small[0])}; wanted 1 or more")
  if config.hidden_dim % config.nhead or config.hidden_dim % 2:
    raise ValueError(f"{path} says hidden_dim is {config.hidden_dim}; wanted an even multiple of nhead, {config.nhead}")
  return config


def _check_keys(where: Any, content: Any, known: dict[str, type]) -> None:
  if not isinstance(content, dict):
    raise ValueError(f"{where} holds {type(content).__name__}; wanted the keys {sorted(known)}")
  unknown, missing = set(content) - set(known), set(known) - set(content)
  if unknown or missing:
    raise ValueError(
      f"{where}: unknown keys {sorted(map(str, unknown))}, missing keys {sorted(missing)}; known are {sorted(known)}"
    )
  for name, kind in known.items():
    got = content[name]
    fits = type(got) is kind or (kind is float and type(got) is int)
    if not fits or (kind is float and not math.isfinite(got)):
      raise ValueError(f"{where}: {name} is {got!r}; wanted {kind.__name__}")


class _ForbiddenError(Exception):
  pass


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors of a `weights.pt` by name (float32); runs nothing that the file asks for.

  Raises ValueError that names the file, and what it wanted to call where that is no part of a tensor; the same for a
  broken file, a compressed one (a small file must not unpack to a huge one), and a number that is not finite.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      tensors = _Reader(archive).state()
  except _ForbiddenError as error:
    raise ValueError(f"{path} wants to call {error}; it was not read, do not trust it") from None
  except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OverflowError, MemoryError) as error:
    raise ValueError(f"{path} is not a whole archive of tensors ({error}); fetch it again") from error
  except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError) as error:
    raise ValueError(f"{path} is no archive of tensors as PyTorch writes it ({error}); fetch it again") from error
  for name, tensor in tensors.items():
    if not np.isfinite(tensor).all():
      raise ValueError(f"{path} has NaN or infinity in {name}; fetch it again")
  return tensors


class _Reader(pickle.Unpickler):
  """Reads the one pickle of an archive; its numbers come from the archive's other files."""

  def __init__(self, archive: zipfile.ZipFile) -> None:
    self.archive = archive
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise ValueError(f"it holds {len(pickles)} files data.pkl, wanted 1")
    self.root = pickles[0].removesuffix("data.pkl")
    if f"{self.root}byteorder" in archive.namelist() and self.content("byteorder", 16) != b"little":
      raise ValueError("its numbers are not little-endian")
    super().__init__(io.BytesIO(self.content("data.pkl", LARGEST_PICKLE)))

  def content(self, name: str, most: int) -> bytes:
    info = self.archive.getinfo(self.root + name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > most:
      raise ValueError(f"{info.filename} is compressed, or larger than {most} bytes")
    return self.archive.read(info)

  def state(self) -> dict[str, np.ndarray]:
    state = self.load()
    if not isinstance(state, dict):
      raise ValueError(f"it holds a {type(state).__name__}, wanted a dict of tensors")
    for name, value in state.items():
      if not isinstance(name, str) or not isinstance(value, np.ndarray):
        raise ValueError(f"{name!r} is a {type(value).__name__}, wanted texts that name tensors")
    return dict(state)

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _tensor
    if module == "torch" and name in _STORAGES:
      return _STORAGES[name]
    raise _ForbiddenError(f"{module}.{name}")

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, dtype, name, _, size = pid
    if kind != "storage" or not isinstance(dtype, np.dtype) or not (isinstance(name, str) and name.isdigit()):
      raise ValueError(f"it refers to {pid!r}, wanted a storage of floats")
    raw = self.content(f"data/{name}", dtype.itemsize * size)
    if len(raw) != dtype.itemsize * size:
      raise ValueError(f"storage {name} has {len(raw)} bytes, wanted {size} numbers of {dtype}")
    return np.frombuffer(raw, dtype).astype(np.float32)


def _tensor(storage: Any, offset: int, shape: tuple, stride: tuple, *_: Any) -> np.ndarray:
  """Returns a tensor as PyTorch describes it: a view of a storage. Raises ValueError if it reaches beyond."""
  numbers = (offset, *shape, *stride)
  if not isinstance(storage, np.ndarray) or any(type(x) is not int or x < 0 for x in numbers):
    raise ValueError(f"a tensor has offset, shape and stride {offset}, {shape}, {stride}")
  last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
  if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
    raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size} numbers")
  view = np.lib.stride_tricks.as_strided(storage[offset:], shape, [4 * step for step in stride])
  return np.ascontiguousarray(view).reshape(shape)
