"""Features → SemiPositives: the nearest training images of other instances, exactly, in chunks.

Block × chunk scores are all that is ever held: queries go block by block, and for each the gallery streams past while
the best so far are merged. Positions are stored, not vectors.
"""

from __future__ import annotations

import functools
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import tqdm

from qat_jax.features.store import FeatureStore
from qat_jax.stages import fingerprint, made, write_whole
from qat_jax.types import SemiPositives

CHUNK_ROWS = 16384
BLOCK = 8  # a chunk of the gallery is wider than a block of queries by this: long rows are cheaper to select from


def mine(
  features: FeatureStore | np.ndarray,
  instance_N: np.ndarray,
  neighbours: int = 100,
  keep: int = 10,
  temperature: float = 0.1,
  chunk: int = CHUNK_ROWS,
  progress: bool = False,
) -> SemiPositives:
  """Returns for each image the nearest `keep` of its `neighbours` nearest by cosine that are of another instance.

  Weights (rows sum to 1) are softmax(cosine / temperature) over those kept; −1 and 0 pad. An image without an instance
  (None) is like no other. Equal cosines go by position. Holds about 3 · chunk²/8 · 4 bytes of scores and two chunks
  of features, whatever N is; the features are read 8 N / chunk times. Raises ValueError for settings without meaning.
  """
  if len(instance_N) != len(features):
    raise ValueError(f"{len(instance_N)} instances for {len(features)} features; give one for each")
  if not len(features):
    raise ValueError("there are no features to mine; give at least one")
  if not 0 < keep <= neighbours or chunk < 1:
    raise ValueError(
      f"keep is {keep}, neighbours {neighbours}, chunk {chunk}; wanted 0 < keep <= neighbours, chunk > 0"
    )
  if temperature <= 0:
    raise ValueError(f"temperature is {temperature}; it must be above 0")
  count = len(features)
  chunk = -(-count // -(-count // chunk))  # chunks of one size, so that the last is hardly padded
  code_N = _codes(instance_N)
  ids_NM, weights_NM = np.empty((count, keep), np.int32), np.empty((count, keep), np.float32)
  bar = tqdm.tqdm(total=count, unit=" images", desc="mining", disable=not progress)
  block = max(chunk // BLOCK, 1)
  for start in range(0, count, block):
    rows = slice(start, min(start + block, count))
    ids_BK, cosine_BK = _nearest(features, start, min(neighbours, max(count - 1, 1)), block, chunk)
    size = rows.stop - start
    ids_NM[rows], weights_NM[rows] = _select(ids_BK[:size], cosine_BK[:size], code_N, code_N[rows], keep, temperature)
    bar.update(size)
  bar.close()
  return SemiPositives(ids_NM, weights_NM)


def save(semi: SemiPositives, path: str | os.PathLike, about: Mapping[str, object] | None = None) -> None:
  """Writes semi-positives and what they were made with to an .npz file, whole or not at all."""
  buffer = io.BytesIO()
  np.savez(buffer, ids=semi.ids, weights=semi.weights, about=np.array(json.dumps(about or {}, sort_keys=True)))
  write_whole(Path(path), buffer.getbuffer())


def load(path: str | os.PathLike) -> tuple[SemiPositives, dict[str, Any]]:
  """Returns the semi-positives in a file and what they were made with; raises ValueError for a damaged file."""
  try:
    with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
      return SemiPositives(file["ids"], file["weights"]), json.loads(str(file["about"]))
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} holds no semi-positives, or is damaged ({error}); delete it, it is mined anew") from error


def ensure(settings: Mapping[str, Any], images: FeatureStore, path: str | os.PathLike) -> SemiPositives | None:
  """Returns the semi-positives in the file `path`, mined and saved first unless it holds those of the same features.

  `settings` has `keep` (0: none are wanted, None comes back), `neighbours` and `temperature`. A file that was made with
  other settings, or from other features or instances, is made anew; a line of the log says what differs.
  """
  if not settings["keep"]:
    return None
  wanted = {name: settings[name] for name in ("neighbours", "keep", "temperature")}
  about = fingerprint(**wanted, images=images.fingerprint)
  if Path(path).exists():
    semi, made_with = load(path)
    if made(path, made_with, about):
      return semi
  semi = mine(images, images.column("instance"), **wanted, progress=True)
  save(semi, path, about)
  return semi


def _nearest(
  features: FeatureStore | np.ndarray, start: int, neighbours: int, block: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the nearest items of `block` items from `start` on, themselves left out (ids and cosines, BK)."""
  block_BD = _padded(features, start, block)
  ids_BK = jnp.full((block, neighbours), -1, jnp.int32)
  cosine_BK = jnp.full((block, neighbours), -jnp.inf)
  for gallery_start in range(0, len(features), chunk):
    part_CD = _padded(features, gallery_start, chunk)
    ids_BK, cosine_BK = _merge(ids_BK, cosine_BK, block_BD, part_CD, start, gallery_start, len(features))
  return np.asarray(ids_BK), np.asarray(cosine_BK)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _merge(
  ids_BK: jax.Array,
  cosine_BK: jax.Array,
  block_BD: jax.Array,
  part_CD: jax.Array,
  block_start: jax.Array,
  part_start: jax.Array,
  count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the best so far with a chunk of the gallery merged in; earlier positions win ties."""
  new_B, new_C = block_start + jnp.arange(len(block_BD)), part_start + jnp.arange(len(part_CD))
  cosine_BC = jnp.matmul(_unit(block_BD), _unit(part_CD).T, precision=jax.lax.Precision.HIGHEST)
  allowed_BC = (new_B[:, None] != new_C[None, :]) & (new_C < count)[None, :]
  some = min(ids_BK.shape[1], len(part_CD))
  best_BK, place_BK = jax.lax.top_k(jnp.where(allowed_BC, cosine_BC, -jnp.inf), some)
  all_BJ = jnp.concatenate([cosine_BK, best_BK], axis=1)
  cosine_BK, place_BJ = jax.lax.top_k(all_BJ, ids_BK.shape[1])
  return jnp.take_along_axis(jnp.concatenate([ids_BK, new_C[place_BK]], axis=1), place_BJ, axis=1), cosine_BK


def _padded(features: FeatureStore | np.ndarray, start: int, chunk: int) -> jax.Array:
  """Returns `chunk` rows on the device, zeros after the last, so that nothing compiles twice."""
  rows_BD = features[start : start + chunk]
  return jnp.asarray(np.pad(rows_BD, ((0, chunk - len(rows_BD)), (0, 0))))


def _unit(features_BD: jax.Array) -> jax.Array:
  features_BD = features_BD.astype(jnp.float32)
  return features_BD * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(features_BD), axis=1, keepdims=True), 1e-12))


def _select(
  ids_BK: np.ndarray, cosine_BK: np.ndarray, code_N: np.ndarray, code_B: np.ndarray, keep: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first `keep` neighbours of another instance and their weights."""
  code_BK = code_N[ids_BK]
  usable_BK = np.isfinite(cosine_BK) & ((code_BK != code_B[:, None]) | (code_BK < 0))
  ids_BK, cosine_BK = np.where(usable_BK, ids_BK, -1), np.where(usable_BK, cosine_BK, -np.inf)
  missing = ((0, 0), (0, max(keep - ids_BK.shape[1], 0)))
  order_BM = np.argsort(~np.pad(usable_BK, missing), axis=1, kind="stable")[:, :keep]
  ids_BM = np.take_along_axis(np.pad(ids_BK, missing, constant_values=-1), order_BM, 1)
  cosine_BM = np.take_along_axis(np.pad(cosine_BK, missing, constant_values=-np.inf), order_BM, 1)
  power_BM = np.where(ids_BM < 0, 0, np.exp((cosine_BM - np.maximum(cosine_BM[:, :1], -2)) / temperature))
  return ids_BM, power_BM / np.maximum(power_BM.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _codes(instance_N: np.ndarray) -> np.ndarray:
  """Returns a number for each instance (N, int64), −1 where there is none."""
  indices = pa.array(instance_N, from_pandas=True).dictionary_encode().indices  # NaN is none, too
  return indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
