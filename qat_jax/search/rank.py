"""Adaptation × gallery → scores and rankings, exactly, wherever the gallery lies."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import jax
import numpy as np
import numpy.typing as npt

from qat_jax.adaptation import power_of_two
from qat_jax.adaptation import score as score_by_factors
from qat_jax.search.bounds import prepare
from qat_jax.search.exact import DEEP, exact_scores
from qat_jax.search.gallery import parts
from qat_jax.search.grouping import grouped, groups_of
from qat_jax.search.masks import Elsewhere, Masks
from qat_jax.search.top import ItemPairs, TopK
from qat_jax.search.whole import best_among, best_of, blocks, padded, ranking_of
from qat_jax.types import (
  MISSING,
  Adaptation,
  ArrayGallery,
  Fetchable,
  Gallery,
  Pieces,
  Ranking,
  as_gallery,
  check_encoders,
)

__all__ = ["rank", "rerank", "score"]

GalleryLike = Gallery | np.ndarray | jax.Array


def rank(
  adaptation: Adaptation,
  gallery: GalleryLike,
  k: int = 100,
  *,
  exclude: npt.ArrayLike | None = None,
  allowed: npt.ArrayLike | None = None,
  group: str | npt.ArrayLike | None = None,
  devices: Sequence[jax.Device] | None = None,
  chunk_rows: int | None = None,
) -> Ranking:
  """Returns the exact top k of the whole gallery for each query; lower id first where scores are equal.

  With `group`, the top k groups: each by its best item, whose position and score the ranking holds.

  Args:
    adaptation: Q queries.
    gallery: unit rows in the adaptation's space, fp16, bf16 or fp32. A device array is used where it lies, its rows
      sharded or not; a NumPy array, a memory map or a FeatureStore is streamed, and may exceed memory.
    k: how many; where fewer items are to be had, ids are filled up with −1 and scores with −inf.
    exclude: positions (Q, or QE with −1 as padding) that a query shall not find: itself, for instance.
    allowed: positions (A, for all queries; or QA with −1 as padding) or a bool N: all that may be found.
    group: a metadata column of the gallery, or a value for each item (N); items with equal values are one group. An
      item without a value (None, NaN, −1) is a group by itself.
    devices: where a streamed gallery goes, chunk by chunk in turn; the default device if None.
    chunk_rows: how many rows are streamed at once.

  Raises ValueError for a gallery that is empty, of another width, space or encoder, or has rows that are NaN or not of
  unit length (named by position), for an adaptation with NaN, and for k < 1; TypeError for what is no adaptation,
  gallery or whole number.
  """
  gallery, k = check_search(adaptation, gallery, k)
  masks = Masks.of(exclude, allowed, len(adaptation), len(gallery))
  group_N = None if group is None else groups_of(group, gallery)
  if isinstance(gallery, Elsewhere):
    if devices is not None or chunk_rows is not None:
      raise ValueError("devices and chunk_rows are of a gallery that this process reads; this one lies on a cluster")
    if group_N is None:
      return gallery.rank(adaptation, k, masks)
    return grouped(functools.partial(gallery.rank, adaptation, masks=masks), k, group_N)
  empty = [TopK.empty(len(block), min(k, len(gallery)), None, group_N) for block in blocks(len(adaptation))]
  deep = k >= DEEP * len(gallery) and not isinstance(gallery, Pieces)  # whose scores do not hang on how it grew
  best = best_of(adaptation, gallery, empty, masks, deep, devices, chunk_rows)
  return ranking_of(best, k, len(gallery))


def rerank(
  adaptation: Adaptation, gallery: GalleryLike | Fetchable, shortlist: Ranking | npt.ArrayLike, k: int | None = None
) -> Ranking:
  """Returns each query's shortlist in the order of the exact adapted scores, the first k of it (all by default).

  `shortlist` is a Ranking or positions (QS): −1 is padding, and what occurs twice counts once. `gallery` is what `rank`
  takes, or an index that gives its items back by its own ids (`fetch`), which the shortlist then holds and the ranking
  too. Raises as `rank` does, and ValueError for positions outside the gallery.
  """
  if isinstance(gallery, Fetchable):
    return _fetched(adaptation, gallery, shortlist, k)
  position_QS = np.asarray(shortlist.ids if isinstance(shortlist, Ranking) else shortlist)
  gallery, k = check_search(adaptation, gallery, position_QS.shape[-1] if k is None else k)
  if position_QS.ndim != 2 or position_QS.dtype.kind not in "iu" or len(position_QS) != len(adaptation):
    raise ValueError(
      f"the shortlist is {position_QS.dtype} {position_QS.shape}; wanted integers, one row for each of "
      f"{len(adaptation)} queries"
    )
  if position_QS.size and (position_QS.min() < -1 or position_QS.max() >= len(gallery)):
    raise ValueError(
      f"the shortlist holds positions {position_QS.min()} to {position_QS.max()}; the gallery has "
      f"{len(gallery)} items, −1 is padding"
    )
  pairs = ItemPairs.of(position_QS.astype(np.int64))
  if isinstance(gallery, Elsewhere):
    nothing = ItemPairs(*np.zeros((2, 0), np.int64))
    return gallery.rank(adaptation, k, Masks(nothing, None, pairs))
  best = best_among(adaptation, gallery, pairs, [TopK.empty(len(block), k) for block in blocks(len(adaptation))])
  return ranking_of(best, k, len(gallery))


def score(adaptation: Adaptation, gallery: GalleryLike) -> jax.Array:
  """Returns cosine(q', T z) for every query and every unit gallery item (QN, float32), to about 1e-6.

  T z is written out, block by block; where float32 would round away what decides, float64 is used. Inside a jitted or
  differentiated function it is `qat_jax.adaptation.score`, by the factors. An item that T maps to zero scores zero.
  """
  if any(isinstance(x, jax.core.Tracer) for x in (*jax.tree.leaves(adaptation), gallery)):
    return score_by_factors(adaptation, gallery)
  gallery, _ = check_search(adaptation, gallery, 1)
  score_QN = np.empty((len(adaptation), len(gallery)), np.float32)
  for block in blocks(len(adaptation)):
    prepared = prepare(padded(adaptation, block))
    for part in parts(gallery, None, None, power_of_two(len(block))):
      score_QN[block.start : block.stop, part.first : part.first + part.items] = exact_scores(
        prepared, part, len(block)
      )
  return jax.numpy.asarray(score_QN)


def check_search(adaptation: Adaptation, gallery: GalleryLike, k: int) -> tuple[Gallery, int]:
  """Returns the gallery as one, and k; raises as `rank` does unless the gallery can be ranked by the adaptation.

  Looks at no features.
  """
  if not isinstance(adaptation, Adaptation):
    raise TypeError(
      f"the adaptation is a {type(adaptation).__name__}; give what an adapter returns, or qat_jax.plain(queries)"
    )
  gallery = as_gallery(gallery)
  try:
    k = operator.index(k)
  except TypeError:
    raise TypeError(f"k is {k!r}; it must be a whole number, at least 1") from None
  if k < 1:
    raise ValueError(f"k is {k}; it must be at least 1")
  if len(adaptation) == 0:
    raise ValueError("the adaptation has no queries; give at least one")
  if len(gallery) == 0:
    raise ValueError("the gallery is empty; give at least one item")
  if gallery.width != adaptation.query.shape[1]:
    raise ValueError(
      f"the gallery is {gallery.width} wide, the adaptation {adaptation.query.shape[1]}; both must come from the same "
      "encoder"
    )
  if gallery.space not in (None, adaptation.space):
    raise ValueError(
      f"the gallery is in the space {gallery.space!r}, the adaptation wants {adaptation.space!r}; "
      "use adapter.prepare(gallery)"
    )
  where = str(getattr(gallery, "folder", "")) or f"of {len(gallery)} items"
  check_encoders("the adaptation", adaptation.encoder, f"the gallery {where}", getattr(gallery, "encoder", None))
  used = jax.tree.leaves(adaptation.replace(frozen=None))
  leaves = [np.asarray(x).reshape(len(adaptation), -1) for x in used]
  finite_Q = np.all([np.isfinite(x).all(axis=1) for x in leaves], axis=0)
  if not finite_Q.all():
    raise ValueError(
      f"the adaptation of query {np.argmin(finite_Q)} has NaN or infinite entries ({np.sum(~finite_Q)} such queries); "
      "look at the query's feature and at the adapter's training"
    )
  return gallery, k


def _fetched(adaptation: Adaptation, index: Fetchable, shortlist: Ranking | npt.ArrayLike, k: int | None) -> Ranking:
  """As `rerank`, where the shortlist holds an index's own ids: its items are fetched once, and ranked by position."""
  ids_QS = np.asarray(shortlist.ids if isinstance(shortlist, Ranking) else shortlist)
  if ids_QS.ndim != 2 or len(ids_QS) != len(adaptation):
    raise ValueError(
      f"the shortlist has shape {ids_QS.shape}; wanted a row of ids for each of {len(adaptation)} queries"
    )
  missing = MISSING[ids_QS.dtype.kind in "iu"]
  names: Sequence = list(dict.fromkeys(name for row in ids_QS.tolist() for name in row if name != missing))
  if len({type(name) for name in names}) == 1:
    names = sorted(names)  # of equal scores the lower id comes first
  place = {name: position for position, name in enumerate(names)} | {missing: -1}
  position_QS = np.array([[place[name] for name in row] for row in ids_QS.tolist()], np.int64).reshape(ids_QS.shape)
  # where nothing was found for any query, any item will do to say so
  item_ND = index.fetch(names) if names else np.eye(1, index.width, dtype=np.float32)
  ranking = rerank(adaptation, ArrayGallery(item_ND, index.space), position_QS, k)
  own_N = np.empty(len(names) + 1, ids_QS.dtype if missing == -1 else object)
  own_N[:-1], own_N[-1] = names, missing  # position −1 is the last
  return ranking.replace(ids=own_N[np.asarray(ranking.ids)])
