"""What training shares with validation or test: a memory of training pairs would answer such queries by heart."""

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.adaptation import unit
from qat_jax.duplicates import THRESHOLD
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import FeatureStore

ADVICE = (
  "a model that has seen them shows nothing about images it has not seen. Split by instance (qat-jax split), or say "
  "--config.data.allow_shared_instances=True, and the report will carry these counts"
)
SHOWN = 3  # names in a message
LOOKED = 2_000  # images of a split that are compared with those of training: it costs a product of as many
CHUNK = 16_384  # training images at once

_log = logging.getLogger(__name__)


def shared(data: RetrievalSet) -> dict[str, dict[str, list[str]]]:
  """Returns what training images and image queries share with each split that has any: {split: {what: names}}.

  `instances`, by their names; `ids` and bit-identical `features` of images, by the ids of the split. Ids that only
  number the rows of both folders are no names of images, and captions may well be the same: neither counts.
  """
  listed = [store for kind, store in data.train_listed.queries.items() if kind == "image"]
  by_split, trained = {}, [data.train_images, *listed]
  for name in ("val", "test"):
    split, names_of = data.split(name), {}
    stores = [split.gallery, *(store for kind, store in split.queries.items() if kind == "image")]
    everything = (split.gallery, *split.queries.values())
    columns = [store.names("instance") for store in everything if "instance" in store.columns]
    names_of["instances"] = _common(columns, data.train_images.names("instance"))
    pairs = list(itertools.product(stores, trained))
    named = [(store, known) for store, known in pairs if not (_numbered(store) and _numbered(known))]
    ids = (item for store, known in named for item in _common([store.arrow_ids()], known.arrow_ids()))
    names_of["ids"] = sorted(set(ids))
    names_of["features"] = sorted({item for store, known in pairs for item in _same_features(store, known)})
    if any(names_of.values()):
      by_split[name] = {what: names for what, names in names_of.items() if names}
  return by_split


def check(data: RetrievalSet, allowed: bool) -> dict[str, dict[str, int]]:
  """Returns the counts of what training shares with a split: {split: {what: count}}, empty as it should be.

  Raises ValueError that names some of it, unless it is `allowed`.
  """
  for name, (alike, images) in near(data).items():
    _log.warning(
      f"{data.root}: {alike:,} of {images:,} images of {name} that were looked at are nearly the same as a training "
      f"image (cosine {THRESHOLD} or more). Look at them: qat-jax duplicates {data.root}/{name}/gallery --against "
      f"{data.root}/train --out shared.parquet"
    )
  by_split = shared(data)
  counts = {name: {what: len(names) for what, names in names_of.items()} for name, names_of in by_split.items()}
  if by_split and not allowed:
    told = [
      f"{len(names):,} {what} of {name} ({', '.join(map(repr, names[:SHOWN]))}{', …' if len(names) > SHOWN else ''})"
      for name, names_of in by_split.items()
      for what, names in names_of.items()
    ]
    raise ValueError(f"{data.root}: train/ holds {'; '.join(told)}: {ADVICE}")
  return counts


def near(data: RetrievalSet) -> dict[str, tuple[int, int]]:
  """Returns how many gallery images of a split are near-duplicates of a training image, and of how many looked at.

  LOOKED images of each split are looked at, evenly spaced. A split that has none is left out.
  """
  counts = {}
  for name in ("val", "test"):
    gallery = data.split(name).gallery
    some = np.unique(np.linspace(0, len(gallery) - 1, min(LOOKED, len(gallery))).astype(int))
    item_ND, cosine_N = unit(gallery[some], np.float32), np.full(len(some), -1.0)
    for _, rows_BD in data.train_images.chunks(CHUNK):
      cosine_N = np.maximum(cosine_N, (item_ND @ unit(rows_BD, np.float32).T).max(axis=1))
    if alike := int((cosine_N >= THRESHOLD).sum()):
      counts[name] = alike, len(some)
  return counts


def _common(columns: list[pa.ChunkedArray], trained: pa.ChunkedArray) -> list[str]:
  known = pc.unique(trained)
  values = [pc.unique(column) for column in columns]
  there = {name for one in values for name in one.filter(pc.is_in(one, value_set=known, skip_nulls=True)).to_pylist()}
  return sorted(name for name in there if name is not None)


def _numbered(store: FeatureStore) -> bool:
  return bool(pc.all(pc.equal(store.arrow_ids(), pa.array(np.arange(len(store))).cast(pa.string()))).as_py())


def _same_features(store: FeatureStore, trained: FeatureStore) -> Iterator[str]:
  """Yields the ids of rows that training has as well, every bit of them in half precision."""
  digest_N, known_N = _digests(store), _digests(trained)
  order_N = np.argsort(known_N)
  place_N = np.searchsorted(known_N[order_N], digest_N).clip(max=len(order_N) - 1)
  twin_N = order_N[place_N]
  for row in np.flatnonzero(known_N[twin_N] == digest_N):
    if np.array_equal(_half(store[row : row + 1]), _half(trained[twin_N[row : row + 1]])):
      yield store.ids[row]


def _digests(store: FeatureStore) -> np.ndarray:
  """Returns a number for each row (N, uint64): a random linear hash of its bits."""
  weight_D = np.random.default_rng(0).integers(1, 1 << 63, store.width, np.uint64) | np.uint64(1)
  parts = [_half(rows_ND).view(np.uint16).astype(np.uint64) @ weight_D for _, rows_ND in store.chunks(16384)]
  return np.concatenate(parts)


def _half(rows_ND: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(rows_ND, np.float16)
