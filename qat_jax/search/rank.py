"""Adaptation × gallery → scores and rankings, exactly.

`rank` proves its top k with the two passes of `qat_jax.search.two_pass`; `rerank` scores what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from qat_jax.adaptation import score
from qat_jax.search.gallery import open_gallery
from qat_jax.search.masks import Masks
from qat_jax.search.proof import exact, padded, power, search, take_queries, two_passes
from qat_jax.search.two_pass import finite
from qat_jax.types import Adaptation, Ranking

__all__ = ["rank", "rerank", "score"]

QUERY_BLOCK = 64
COLUMNS = 16  # of the first pass, where a batch is small: no dearer than the queries alone
BOUNDS = 1 << 27  # how many upper bounds (queries × rows on a device) a first pass may hold


def rank(
  adaptation: Adaptation,
  gallery: Any,
  k: int = 100,
  *,
  exclude: Any = None,
  allowed: Any = None,
  kept: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  chunk_rows: int | None = None,
) -> Ranking:
  """Returns the exact top k of the whole gallery for each query; lower id first where scores are equal.

  Args:
    adaptation: Q queries.
    gallery: unit rows in the adaptation's space, fp16, bf16 or fp32. A device array is used where it lies, its rows
      sharded or not (on CPUs only fp32); a NumPy array, a memory map or a FeatureStore is streamed, and may exceed
      memory.
    k: how many; where fewer items are to be had, ids are filled up with −1 and scores with −inf.
    exclude: positions (Q, or QE with −1 as padding) that a query shall not find: itself, for instance.
    allowed: positions (A, for all queries; or QA with −1 as padding) or a bool N: all that may be found.
    kept: go through the gallery in two passes, the first one looking at so many directions of the spectrum: more of
      them bound better and cost more. By default the sieves go first, where the gallery lies on one device.
    devices: where a streamed gallery goes, chunk by chunk in turn; the default device if None.
    chunk_rows: how many rows are streamed at once.

  Raises ValueError for a gallery that is empty, of another width or space, or has rows that are NaN or not of unit
  length (named by position), for an adaptation with NaN, and for k < 1.
  """
  check(adaptation, gallery, k)
  masks = Masks.of(exclude, allowed, len(adaptation), len(gallery))
  parts = open_gallery(gallery, devices, chunk_rows)
  block = min(QUERY_BLOCK, power(len(adaptation)), max(1, power(BOUNDS // parts.longest + 1) // 2))
  find = search if kept is None else two_passes
  if kept is None:
    kept = max(1, min(7, COLUMNS // block - 1))
  kept = min(kept, 2 * adaptation.left.shape[2])
  found = []
  for start in range(0, len(adaptation), block):
    rows = np.arange(start, min(start + block, len(adaptation)))
    some = padded(rows)
    top = find(take_queries(adaptation, some), masks.queries(some), parts, min(k, len(gallery)), kept)
    found.append([x[: len(rows)] for x in top])
  return _ranking(found, k)


def rerank(adaptation: Adaptation, gallery: Any, shortlist: Ranking | Any, k: int | None = None) -> Ranking:
  """Returns each query's shortlist in the order of the exact adapted scores, the first k of it (all by default).

  `shortlist` is a Ranking or positions (QS): −1 is padding, and what occurs twice counts once. Lengths are padded to
  powers of two, so that a new length seldom compiles anew. `gallery` is what `rank` takes. Raises as `rank` does, and
  ValueError for positions outside the gallery.
  """
  position_QS = np.asarray(shortlist.ids if isinstance(shortlist, Ranking) else shortlist)
  if position_QS.ndim != 2 or position_QS.dtype.kind not in "iu" or len(position_QS) != len(adaptation):
    raise ValueError(
      f"the shortlist is {position_QS.dtype} {position_QS.shape}; wanted integers, one row for each of "
      f"{len(adaptation)} queries"
    )
  k = position_QS.shape[1] if k is None else k
  check(adaptation, gallery, k)
  if position_QS.min() < -1 or position_QS.max() >= len(gallery):
    raise ValueError(
      f"the shortlist holds positions {position_QS.min()} to {position_QS.max()}; the gallery has "
      f"{len(gallery)} items, −1 is padding"
    )
  position_QS = np.sort(position_QS, axis=1)
  position_QS[:, 1:][position_QS[:, 1:] == position_QS[:, :-1]] = -1
  padding = ((0, 0), (0, max(16, power(position_QS.shape[1])) - position_QS.shape[1]))
  position_QS = np.pad(position_QS, padding, constant_values=-1).astype(np.int32)
  parts = open_gallery(gallery, None, None)
  found = []
  for start in range(0, len(adaptation), QUERY_BLOCK):
    rows = np.arange(start, min(start + QUERY_BLOCK, len(adaptation)))
    some = padded(rows)
    found.append([x[: len(rows)] for x in exact(take_queries(adaptation, some), parts, position_QS[some])])
  return _ranking(found, k)


def check(adaptation: Adaptation, gallery: Any, k: int) -> None:
  """Raises ValueError unless the gallery can be ranked by the adaptation; looks at no features."""
  if k < 1:
    raise ValueError(f"k is {k}; it must be at least 1")
  if len(adaptation) == 0:
    raise ValueError("the adaptation has no queries; give at least one")
  if len(gallery) == 0:
    raise ValueError("the gallery is empty; give at least one item")
  width = gallery.width if hasattr(gallery, "width") else gallery.shape[1]
  if width != adaptation.query.shape[1]:
    raise ValueError(
      f"the gallery is {width} wide, the adaptation {adaptation.query.shape[1]}; both must come from the same encoder"
    )
  space = getattr(gallery, "space", adaptation.space)
  if space != adaptation.space:
    raise ValueError(
      f"the gallery is in the space {space!r}, the adaptation wants {adaptation.space!r}; use adapter.prepare(gallery)"
    )
  finite_Q = np.asarray(finite(adaptation))
  if not finite_Q.all():
    raise ValueError(
      f"the adaptation of query {np.argmin(finite_Q)} has NaN or infinite entries ({np.sum(~finite_Q)} such queries); "
      "look at the query's feature and at the adapter's training"
    )


def _ranking(blocks: list[list[np.ndarray]], k: int) -> Ranking:
  """Returns the ids and scores of blocks of queries as one Ranking, filled up to k."""
  ids_QB, score_QB = (np.concatenate(x)[:, :k] for x in zip(*blocks, strict=True))
  missing = k - ids_QB.shape[1]
  if missing:
    ids_QB = np.pad(ids_QB, ((0, 0), (0, missing)), constant_values=-1)
    score_QB = np.pad(score_QB, ((0, 0), (0, missing)), constant_values=-np.inf)
  return Ranking(ids_QB, score_QB)
