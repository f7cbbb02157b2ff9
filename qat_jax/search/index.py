"""Indexes over unit gallery items for inner-product search: exact, and ScaNN's approximate one.

Two verbs, `build` and `search`. A query vector is anything D wide: a raw query, or `fold(adaptation)`.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import plain
from qat_jax.search.rank import GalleryLike, rank
from qat_jax.types import Gallery, Ranking, as_gallery

SMALL = 20_000  # below this many items ScaNN compares with all of them: partitions would be too small to learn


class Index(Protocol):
  """What every index does."""

  space: str  # the gallery's FeatureStore.space

  @classmethod
  def build(cls, gallery: GalleryLike) -> Self:
    """Returns the index of a gallery: an array (ND, unit rows) or a FeatureStore."""

  def search(self, query_QD: np.ndarray | jax.Array, k: int) -> Ranking:
    """Returns the k items with the largest inner products; id −1, score −inf where there are fewer."""

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the index to a folder, whole or not at all."""

  @classmethod
  def load(cls, folder: str | os.PathLike) -> Self:
    """Returns the index that `save` wrote; the folder may have moved."""


class ExactIndex:
  """Every inner product, in float32."""

  def __init__(self, gallery: GalleryLike, space: str = "frozen") -> None:
    self.gallery, self.space = as_gallery(gallery), space

  @classmethod
  def build(cls, gallery: GalleryLike) -> ExactIndex:
    """Returns the index, which holds the gallery itself."""
    gallery = check_gallery(gallery)
    return cls(gallery, gallery.space or "frozen")

  def search(self, query_QD: np.ndarray | jax.Array, k: int) -> Ranking:
    query_QD = as_queries(query_QD, self.gallery.width, k)
    ranking = rank(plain(jnp.asarray(query_QD), self.space), self.gallery, k)
    length_Q1 = np.linalg.norm(query_QD, axis=1, keepdims=True)
    return ranking.replace(scores=np.where(ranking.ids < 0, -np.inf, length_Q1 * ranking.scores).astype(np.float32))

  def save(self, folder: str | os.PathLike) -> None:
    with _whole(folder, {"kind": "exact", "space": self.space}) as temporary:
      np.save(temporary / "gallery.npy", np.asarray(self.gallery[:]))

  @classmethod
  def load(cls, folder: str | os.PathLike) -> ExactIndex:
    about = _about(folder, "exact")
    return cls(np.load(pathlib.Path(folder) / "gallery.npy", mmap_mode="r"), about["space"])


class ScannIndex:
  """ScaNN: partitions, quantised scores, and exact inner products of the best few."""

  def __init__(self, searcher: Any, items: int, width: int, space: str) -> None:
    self.searcher, self.items, self.width, self.space = searcher, items, width, space

  @classmethod
  def build(cls, gallery: GalleryLike, leaves_searched: float = 0.1, reordered: int = 1000) -> ScannIndex:
    """Returns the index; a gallery of under 20,000 items is searched exhaustively.

    `leaves_searched`: the share of partitions that a search looks into; `reordered`: how many of the best quantised
    scores are computed exactly.
    """
    gallery = check_gallery(gallery)
    gallery_ND = np.ascontiguousarray(gallery[:], np.float32)
    items, width = gallery_ND.shape
    builder = _scann().builder(gallery_ND, min(reordered, items), "dot_product")
    if items < SMALL:
      builder = builder.score_brute_force()
    else:
      leaves = round(items**0.5)
      builder = builder.tree(leaves, max(1, round(leaves * leaves_searched)), training_sample_size=min(items, 250_000))
      builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(reordered)
    return cls(builder.build(), items, width, gallery.space or "frozen")

  def search(self, query_QD: np.ndarray | jax.Array, k: int) -> Ranking:
    query_QD = as_queries(query_QD, self.width, k)
    found = min(k, self.items)
    ids_QK, scores_QK = self.searcher.search_batched_parallel(query_QD, found, max(found, min(self.items, 1000)))
    ids_QK, scores_QK = np.asarray(ids_QK).astype(np.int32), np.asarray(scores_QK, np.float32)
    missing_QK = ~np.isfinite(scores_QK)  # ScaNN fills up with NaN where the partitions searched hold fewer
    missing = ((0, 0), (0, k - found))
    return Ranking(
      np.pad(np.where(missing_QK, -1, ids_QK), missing, constant_values=-1),
      np.pad(np.where(missing_QK, -np.inf, scores_QK).astype(np.float32), missing, constant_values=-np.inf),
    )

  def save(self, folder: str | os.PathLike) -> None:
    about = {"kind": "scann", "space": self.space, "items": self.items, "width": self.width}
    with _whole(folder, about) as temporary:
      (temporary / "scann").mkdir()
      self.searcher.serialize(str(temporary / "scann"), relative_path=True)

  @classmethod
  def load(cls, folder: str | os.PathLike) -> ScannIndex:
    about = _about(folder, "scann")
    searcher = _scann().load_searcher(str(pathlib.Path(folder) / "scann"))
    return cls(searcher, about["items"], about["width"], about["space"])


def check_gallery(gallery: GalleryLike) -> Gallery:
  """Returns the gallery as one; raises ValueError if it is empty."""
  gallery = as_gallery(gallery)
  if len(gallery) == 0:
    raise ValueError("the gallery is empty; an index wants at least one item")
  return gallery


def as_queries(query_QD: np.ndarray | jax.Array, width: int, k: int) -> np.ndarray:
  """Returns the queries as float32 (QD); raises ValueError unless they are finite and of the index's width."""
  query_QD = np.asarray(query_QD, np.float32)
  if k <= 0:
    raise ValueError(f"k is {k}; it must be at least 1")
  if query_QD.ndim != 2 or query_QD.shape[1] != width:
    raise ValueError(f"the queries have shape {query_QD.shape}, the index is {width} wide; give (Q, {width})")
  if not np.isfinite(query_QD).all():
    row = int(np.flatnonzero(~np.isfinite(query_QD).all(axis=1))[0])
    raise ValueError(f"query {row} has NaN or infinite entries; leave it out")
  return query_QD


def _scann() -> Any:
  try:
    from scann import scann_ops_pybind
  except ImportError as error:
    raise ImportError(
      "ScannIndex wants the package scann (Linux only): pip install scann, or use ExactIndex"
    ) from error
  return scann_ops_pybind


class _whole:  # noqa: N801
  """A folder that appears under its name when everything in it is written."""

  def __init__(self, folder: str | os.PathLike, about: dict) -> None:
    self.folder, self.about = pathlib.Path(folder).resolve(), about
    self.temporary = self.folder.with_name(self.folder.name + ".incomplete")

  def __enter__(self) -> pathlib.Path:
    shutil.rmtree(self.temporary, ignore_errors=True)
    self.temporary.mkdir(parents=True)
    return self.temporary

  def __exit__(self, kind: Any, *_: object) -> None:
    if kind is not None:
      shutil.rmtree(self.temporary, ignore_errors=True)
      return
    (self.temporary / "index.json").write_text(json.dumps({"format": 1, **self.about}) + "\n")
    shutil.rmtree(self.folder, ignore_errors=True)
    os.replace(self.temporary, self.folder)


def _about(folder: str | os.PathLike, kind: str) -> dict:
  path = pathlib.Path(folder) / "index.json"
  if not path.exists():
    raise FileNotFoundError(f"no index in {folder}: it has no index.json. Write one with index.save(folder)")
  about = json.loads(path.read_text())
  if about["kind"] != kind:
    raise ValueError(f"{folder} holds an index of kind {about['kind']!r}, not {kind!r}; load it with the other class")
  return about
