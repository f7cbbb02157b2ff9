"""The nouns that every module shares, and the letters that name their dimensions.

Dimension key: Q queries, B per-device batch, N gallery, K kept items, M semi-positives, D width, R rank, L tokens,
H hidden. An array of known rank ends in its letters: `score_QN`, `left_QDR`. Where two axes run over the same kind of
thing, the second takes the next letter of the alphabet: `map_QDE`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

KIND_OF_QUERY = {"text": "text", "image": "img"}  # the kind of features, on disk, that a type of query has
QUERY_TYPES = tuple(KIND_OF_QUERY)
MISSING = {True: -1, False: None}  # what stands for no item in a Ranking, by whether its ids are integers
EncoderName = tuple[str, str | None]  # an encoder's name, and its revision where that is known


@runtime_checkable
class Gallery(Protocol):
  """What can be ranked: N rows of D floats. A FeatureStore is one; `as_gallery` makes one of an array."""

  @property
  def width(self) -> int:
    """D."""

  @property
  def dtype(self) -> np.dtype:
    """The type of the rows as they are stored."""

  @property
  def space(self) -> str | None:
    """Either "frozen" or the space of the adapter that prepared the rows; None where nobody wrote it (an array)."""

  def __len__(self) -> int:
    """N."""

  def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray | jax.Array:
    """Returns rows (ND): a slice, or positions in any order, with repeats."""


@runtime_checkable
class Fetchable(Protocol):
  """An index that gives vectors back by the ids that it knows its items by, so that a shortlist can be reranked."""

  space: str  # as Gallery's

  @property
  def width(self) -> int:
    """D."""

  def fetch(self, ids: Sequence[Any] | np.ndarray, /) -> np.ndarray:
    """Returns the items (ND, float32, unit) of some ids; raises KeyError for an id that is not there."""


@dataclass(frozen=True)
class ArrayGallery:
  """A NumPy array, memory map or JAX array as a Gallery; nothing is copied."""

  array: np.ndarray | jax.Array  # ND
  space: str | None = None

  @property
  def width(self) -> int:
    """D."""
    return self.array.shape[1]

  @property
  def dtype(self) -> np.dtype:
    """The type of the array."""
    return np.dtype(self.array.dtype)

  def __len__(self) -> int:
    return self.array.shape[0]

  def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray | jax.Array:
    return self.array[rows]


@dataclass(frozen=True)
class Pieces:
  """Device arrays behind one another as one gallery that others like it replace while it grows and shrinks.

  An array may have more rows than items: what follows them is padding of unit length, so arrays come in few shapes, and
  searches compile nothing new. An item that is not `alive` is never found; it keeps its position.
  """

  arrays: tuple[jax.Array, ...]  # ND each, one at least, of one width and type
  counts: tuple[int, ...]  # how many rows of each are items
  alive: tuple[np.ndarray, ...]  # bool, an entry an item of each
  space: str | None = None

  @property
  def width(self) -> int:
    """D."""
    return self.arrays[0].shape[1]

  @property
  def dtype(self) -> np.dtype:
    """The type of the arrays."""
    return np.dtype(self.arrays[0].dtype)

  @property
  def starts(self) -> np.ndarray:
    """The position of each array's first item, and the number of all items."""
    return np.cumsum([0, *self.counts])

  @property
  def living(self) -> np.ndarray:
    """The positions of the items that may be found."""
    return np.flatnonzero(np.concatenate(self.alive))

  def __len__(self) -> int:
    return sum(self.counts)

  def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
    """Returns rows (ND, in memory): a slice, or positions in any order, with repeats."""
    place_N = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
    if place_N.size and not (place_N.min() >= 0 and place_N.max() < len(self)):
      raise IndexError(f"positions {place_N.min()} to {place_N.max()} of a gallery of {len(self)} items")
    found_ND = np.empty((len(place_N), self.width), self.dtype)
    of_N = np.searchsorted(self.starts, place_N, "right") - 1
    for piece in np.unique(of_N):
      here, array = np.flatnonzero(of_N == piece), self.arrays[piece]
      row_B = place_N[here] - self.starts[piece]
      if next(iter(array.devices())).platform == "cpu":  # no copy of the whole
        found_ND[here] = np.asarray(array)[row_B]
      else:
        few_B = np.pad(row_B, (0, (1 << (len(row_B) - 1).bit_length()) - len(row_B)))  # few shapes to compile for
        found_ND[here] = np.asarray(jnp.take(array, few_B, axis=0))[: len(row_B)]
    return found_ND


def as_gallery(gallery: Gallery | np.ndarray | jax.Array) -> Gallery:
  """Returns what was given as a Gallery: a store as it is, an array (ND) wrapped.

  Raises TypeError for what is neither, ValueError for arrays that are not N×D floats in the machine's byte order.
  """
  if isinstance(gallery, Gallery):
    return gallery
  if not isinstance(gallery, np.ndarray | jax.Array):
    raise TypeError(f"the gallery is a {type(gallery).__name__}; give an array (N×D) or a FeatureStore")
  if gallery.ndim != 2:
    raise ValueError(f"the gallery is an array of shape {gallery.shape}; wanted items × width, N×D")
  if not jnp.issubdtype(gallery.dtype, jnp.floating):
    raise ValueError(f"the gallery holds {gallery.dtype}; wanted floats: float16, bfloat16 or float32")
  if not np.dtype(gallery.dtype).isnative:
    raise ValueError(f"the gallery holds {gallery.dtype} in another byte order; convert it: gallery.astype('float32')")
  return ArrayGallery(gallery)


def check_encoders(one: str, encoder: EncoderName | None, other: str, other_encoder: EncoderName | None) -> None:
  """Raises ValueError that names both where the encoders of two things are known, and are not the same.

  Equal names are the same encoder unless two revisions differ; so are equal revisions that are a hash, whatever the
  folder was called.
  """
  if encoder is None or other_encoder is None:
    return
  (name, revision), (other_name, other_revision) = encoder, other_encoder
  same = revision == other_revision
  content = same and revision is not None and re.fullmatch("[0-9a-f]{32,}", revision)
  if not content and (name != other_name or not (same or revision is None or other_revision is None)):
    names = ["@".join(filter(None, known)) for known in (encoder, other_encoder)]
    raise ValueError(f"{one} is of the encoder {names[0]}, {other} of {names[1]}; use one encoder for both")


class Adaptation(struct.PyTreeNode):
  """What an adapter predicts for Q queries: q' and T = diag(gate) + left @ rightᵀ (float32).

  A gallery item d, prepared to the unit vector z, scores cosine(q', T z). `left` and `right` may have rank R = 0.
  Nothing is computed with `frozen`: it is what travels to machines that hold the adapter, in place of the maps.
  """

  query: jax.Array  # QD, unit norm
  gate: jax.Array  # QD, or Q1 where one number serves all dimensions
  left: jax.Array  # QDR
  right: jax.Array  # QDR
  space: str = struct.field(pytree_node=False, default="frozen")  # which gallery it is for: FeatureStore.space
  encoder: EncoderName | None = struct.field(pytree_node=False, default=None)  # of the queries, where it is known
  frozen: jax.Array | None = None  # QD, the features it was predicted of, where they are known

  def __len__(self) -> int:
    return self.query.shape[0]

  def __getitem__(self, rows: slice) -> Adaptation:
    """Returns the adaptation of some of the queries; `rows` is a slice, so that the query axis stays."""
    return jax.tree.map(lambda x: x[rows], self)


class Ranking(struct.PyTreeNode):
  """The best K gallery items of each query, best first.

  `ids` are positions in the gallery, −1 (score −inf) where fewer than K items were to be had. An index that knows its
  items by ids of its own gives those: int64, or objects (str, UUID), and then None instead of −1. `evidence` is the
  probability that an item is what the query looks for, where `qat_jax.calibrate` has told it; NaN is not known.
  """

  ids: np.ndarray  # QK, int32 where they are positions
  scores: np.ndarray  # QK, float32
  evidence: np.ndarray | None = None  # QK, float32

  def taken(self, place_QK: np.ndarray) -> Ranking:
    """Returns the entries at some places of each query; where a place is −1, id −1, score −inf and no evidence."""

    def take(array: np.ndarray, other: float) -> np.ndarray:
      there = np.take_along_axis(array, np.maximum(place_QK, 0), axis=1)
      return np.where(place_QK < 0, array.dtype.type(other), there)

    evidence = None if self.evidence is None else take(self.evidence, np.nan)
    return self.replace(ids=take(self.ids, -1), scores=take(self.scores, -np.inf), evidence=evidence)


class SemiPositives(struct.PyTreeNode):
  """Neighbours of each training image that count as partly right: positions, and weights that sum to 1 in a row.

  An item with fewer than M neighbours is padded with position −1 and weight 0.
  """

  ids: np.ndarray  # NM, int32
  weights: np.ndarray  # NM, float32


@dataclass(frozen=True)
class Relevance:
  """For each query the gallery positions that are right, and those that do not count at all.

  Ignored items (the query's own image, junk) are removed from a ranking before anything is measured.
  """

  positives: list[np.ndarray]  # one int array a query
  ignored: list[np.ndarray]  # one int array a query

  def __post_init__(self) -> None:
    if len(self.positives) != len(self.ignored):
      raise ValueError(
        f"positives for {len(self.positives)} queries, ignored for {len(self.ignored)}; give one array of each a query"
      )

  def __len__(self) -> int:
    return len(self.positives)

  def take(self, queries: Sequence[int] | np.ndarray) -> Relevance:
    """Returns the relevance of some of the queries, in the order given."""
    return Relevance([self.positives[i] for i in queries], [self.ignored[i] for i in queries])
