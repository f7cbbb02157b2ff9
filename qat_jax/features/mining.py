"""Features → SemiPositives: the nearest training images of other instances, exactly.

Queries go block by block through the library's own search; positions are stored, not vectors.
"""

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import tqdm

from qat_jax.adaptation import normalise, plain
from qat_jax.cluster.work import LOCAL, run
from qat_jax.features.store import FeatureStore
from qat_jax.sealed import UNREADABLE
from qat_jax.search.rank import rank
from qat_jax.stages import fingerprint, made, write_whole
from qat_jax.types import Gallery, SemiPositives, as_gallery

FORMAT = 1  # of the file of semi-positives
BLOCK = 1024  # queries that one reading of the features serves
RESIDENT = 1 << 29  # bytes of float32: features of no more lie on the device, others are read once a block


def mine(
  features: FeatureStore | np.ndarray,
  instance_N: np.ndarray,
  neighbours: int = 100,
  keep: int = 10,
  temperature: float = 0.1,
  block: int = BLOCK,
  progress: bool = False,
  cluster: str = LOCAL,
) -> SemiPositives:
  """Returns for each image the nearest `keep` of its `neighbours` nearest by cosine that are of another instance.

  Weights (rows sum to 1) are softmax(cosine / temperature) over those kept; −1 and 0 pad. Equal cosines go by
  position. Features above half a gigabyte are read N / block times, a chunk at a time.

  Args:
    features: of the images, ND.
    instance_N: of each image; one without an instance (None) is like no other.
    neighbours: how many of the nearest are looked at.
    keep: how many are kept.
    temperature: of the softmax.
    block: how many images are searched for at once.
    progress: whether a progress bar is shown.
    cluster: who mines: this process, or a Ray cluster (docs/scale.md); only a store can be read there.

  Raises ValueError for settings without meaning.
  """
  if len(instance_N) != len(features):
    raise ValueError(f"{len(instance_N)} instances for {len(features)} features; give one for each")
  if not len(features):
    raise ValueError("there are no features to mine; give at least one")
  if not 0 < keep <= neighbours or block < 1:
    raise ValueError(
      f"keep is {keep}, neighbours {neighbours}, block {block}; wanted 0 < keep <= neighbours, block > 0"
    )
  if temperature <= 0:
    raise ValueError(f"temperature is {temperature}; it must be above 0")
  if cluster != LOCAL and not isinstance(features, FeatureStore):
    raise ValueError(
      f"the features are a {type(features).__name__}; on a cluster give a FeatureStore, which all can read"
    )
  count = len(features)
  code_N = pa.array(instance_N, from_pandas=True).dictionary_encode().indices  # NaN is none, too
  code_N = code_N.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
  mined = _Blocks(as_gallery(features), code_N, neighbours, keep, temperature, block)
  ids_NM, weights_NM = np.empty((count, keep), np.int32), np.empty((count, keep), np.float32)
  with tqdm.tqdm(total=count, unit=" images", desc="mining", disable=not progress) as bar:
    for start, (ids_BM, weights_BM) in run(mined, range(0, count, block), cluster):
      ids_NM[start : start + block], weights_NM[start : start + block] = ids_BM, weights_BM
      bar.update(len(ids_BM))
  return SemiPositives(ids_NM, weights_NM)


@dataclasses.dataclass
class _Blocks:
  """Mines for one block of images: its number is that of its first."""

  features: Gallery
  code_N: np.ndarray  # a number for each instance, −1 where there is none
  neighbours: int
  keep: int
  temperature: float
  block: int
  images: Any = None  # what is searched: on the device where it is small enough, once the first block is asked for

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"images": None}

  def __call__(self, start: int) -> tuple[np.ndarray, np.ndarray]:
    gallery, count = _UnitRows(self.features), len(self.features)
    if self.images is None:
      self.images = jnp.asarray(gallery[:]) if 4 * count * gallery.width <= RESIDENT else gallery
    rows = np.arange(start, min(start + self.block, count))
    neighbours = min(self.neighbours, max(count - 1, 1))
    nearest = rank(plain(jnp.asarray(gallery[rows])), self.images, neighbours, exclude=rows)
    return _select(nearest.ids, nearest.scores, self.code_N, self.code_N[rows], self.keep, self.temperature)


def save(semi: SemiPositives, path: str | os.PathLike, about: Mapping[str, object] | None = None) -> None:
  """Writes semi-positives and what they were made with to an .npz file, whole or not at all."""
  buffer = io.BytesIO()
  np.savez(buffer, ids=semi.ids, weights=semi.weights, about=np.array(json.dumps(about or {}, sort_keys=True)))
  write_whole(Path(path), buffer.getbuffer())


def load_semi_positives(path: str | os.PathLike) -> tuple[SemiPositives, dict[str, Any]]:
  """Returns the semi-positives in a file and what they were made with; raises ValueError for a damaged file."""
  try:
    with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
      return SemiPositives(file["ids"], file["weights"]), json.loads(str(file["about"]))
  except UNREADABLE as error:
    raise ValueError(f"{path} holds no semi-positives, or is damaged ({error}); delete it, it is mined anew") from error


def ensure(
  settings: Mapping[str, Any], images: FeatureStore, path: str | os.PathLike, cluster: str = LOCAL
) -> SemiPositives | None:
  """Returns the semi-positives in the file `path`, mined and saved first unless it holds those of the same features.

  A file that was made with other settings, or from other features or instances, is made anew; a line of the log says
  what differs.

  Args:
    settings: `keep` (0: none are wanted, None comes back), `neighbours` and `temperature`.
    images: the training images, with `instance`.
    path: of the file.
    cluster: who mines, as of `mine`.
  """
  if not settings["keep"]:
    return None
  options = {name: settings[name] for name in ("neighbours", "keep", "temperature")}
  about = fingerprint(format=FORMAT, **options, images=images.fingerprint)
  if Path(path).exists():
    semi, made_with = load_semi_positives(path)
    if made(path, made_with, about):
      return semi
  semi = mine(images, images.column("instance"), **options, progress=True, cluster=cluster)
  save(semi, path, about)
  return semi


@dataclasses.dataclass(frozen=True)
class _UnitRows:
  """A gallery whose rows come out in float32 and of unit length."""

  gallery: Gallery
  space: str = "frozen"

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(np.float32)

  @property
  def width(self) -> int:
    return self.gallery.width

  def __len__(self) -> int:
    return len(self.gallery)

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    return np.asarray(normalise(jnp.asarray(self.gallery[rows])))


def _select(
  ids_BK: np.ndarray, cosine_BK: np.ndarray, code_N: np.ndarray, code_B: np.ndarray, keep: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first `keep` neighbours of another instance (BM) and their weights (BM)."""
  code_BK = code_N[ids_BK]
  usable_BK = np.isfinite(cosine_BK) & ((code_BK != code_B[:, None]) | (code_BK < 0))
  ids_BK, cosine_BK = np.where(usable_BK, ids_BK, -1), np.where(usable_BK, cosine_BK, -np.inf)
  missing = ((0, 0), (0, max(keep - ids_BK.shape[1], 0)))
  order_BM = np.argsort(~np.pad(usable_BK, missing), axis=1, kind="stable")[:, :keep]
  ids_BM = np.take_along_axis(np.pad(ids_BK, missing, constant_values=-1), order_BM, 1)
  cosine_BM = np.take_along_axis(np.pad(cosine_BK, missing, constant_values=-np.inf), order_BM, 1)
  power_BM = np.where(ids_BM < 0, 0, np.exp((cosine_BM - np.maximum(cosine_BM[:, :1], -2)) / temperature))
  return ids_BM, power_BM / np.maximum(power_BM.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
