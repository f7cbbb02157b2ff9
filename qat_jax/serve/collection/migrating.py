"""From yesterday's encoder to another: old features placed in the new space by a map, until their pictures are encoded.

A sample is encoded by both encoders. Several maps from old to new features are fitted on it: a ridge regression, an
orthogonal one (Procrustes), and the ridge with a memory of what it gets wrong. Each is judged on queries of the new
encoder that it was not fitted on; the best one places all other items. A placed item has the stamp PLACED and no
content, so whoever feeds the collection encodes its picture, and the exact feature takes its place.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from qat_jax.adaptation import unit
from qat_jax.sealed import read_record, write_record
from qat_jax.serve.collection.blocks import ADDED, HIDDEN, PLACED, STAMP, Block, Item, as_plain
from qat_jax.serve.collection.collection import Collection

RECORD = "migrated.json"
LEAST = 200  # pictures that are encoded twice, at least
FOLDS = 4
NEAREST = 10  # of the true neighbours that a place should keep, where nothing says what belongs together
RIDGES = (0.001, 0.01, 0.1, 1.0)  # times the mean variance of a feature
TEMPERATURES = (0.03, 0.1)  # of the memory's softmax
BATCH = 1000  # items of one change

Map = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Gate:
  """What the maps reached: the share of what true features reach, on queries that they were not fitted on."""

  shares: dict[str, float]
  measure: str  # "mAP", or "of the 10 nearest"
  queries: int
  map: Map  # the best one, fitted on the whole sample

  @property
  def best(self) -> str:
    """The name of the best map."""
    return max(self.shares, key=lambda name: self.shares[name])


def maps() -> dict[str, Callable[[np.ndarray, np.ndarray], Map]]:
  """Returns what fits each map: old (SD) and new (SE) features of a sample → a function of old ones (ND → NE, unit)."""
  ridges = {f"ridge {scale:g}": functools.partial(ridge, scale=scale) for scale in RIDGES}
  memories = {
    f"ridge {scale:g} with memory {heat:g}": functools.partial(remembering, scale=scale, heat=heat)
    for scale in RIDGES
    for heat in TEMPERATURES
  }
  return {**ridges, "procrustes": procrustes, **memories}


def ridge(old_SD: np.ndarray, new_SE: np.ndarray, scale: float) -> Map:
  """Returns the least squares map with an offset, shrunk."""
  mean_D, mean_E = old_SD.mean(axis=0), new_SE.mean(axis=0)
  centred_SD = old_SD - mean_D
  scatter_DD = centred_SD.T @ centred_SD
  shrunk_DD = scatter_DD + scale * np.trace(scatter_DD) / len(scatter_DD) * np.eye(len(scatter_DD))
  map_DE = np.linalg.solve(shrunk_DD, centred_SD.T @ (new_SE - mean_E))
  return lambda old_ND: unit((old_ND - mean_D) @ map_DE + mean_E)


def procrustes(old_SD: np.ndarray, new_SE: np.ndarray) -> Map:
  """Returns the orthogonal map, of centred features, that is nearest to the sample's."""
  mean_D, mean_E = old_SD.mean(axis=0), new_SE.mean(axis=0)
  left_DR, _, right_RE = np.linalg.svd((old_SD - mean_D).T @ (new_SE - mean_E), full_matrices=False)
  map_DE = left_DR @ right_RE
  return lambda old_ND: unit((old_ND - mean_D) @ map_DE + mean_E)


def remembering(old_SD: np.ndarray, new_SE: np.ndarray, scale: float, heat: float) -> Map:
  """Returns a ridge, plus what it gets wrong for the items of the sample that are most like the one to place."""
  plain = ridge(old_SD, new_SE, scale)
  wrong_SE = new_SE - plain(old_SD)

  def placed(old_ND: np.ndarray) -> np.ndarray:
    cosine_NS = old_ND @ old_SD.T
    share_NS = np.exp((cosine_NS - cosine_NS.max(axis=1, keepdims=True)) / heat)
    return unit(plain(old_ND) + share_NS / share_NS.sum(axis=1, keepdims=True) @ wrong_SE)

  return placed


def gate(old_SD: np.ndarray, new_SE: np.ndarray, instances: Sequence[Any]) -> Gate:
  """Returns the best map, and what each reaches: fitted on some folds of the sample, judged on what it did not see.

  The queries are true new features, the gallery is placed. Where instances have several pictures, the share is that of
  the mean average precision; else of the nearest true neighbours that are among the nearest places.
  """
  old_SD, new_SE = old_SD.astype(np.float64), new_SE.astype(np.float64)
  fold_S = np.random.default_rng(0).permutation(len(old_SD)) % FOLDS
  names = np.array([str(one) if one not in (None, "") else f"\0{i}" for i, one in enumerate(instances)])
  relevant_SS = (names[:, None] == names[None]) & ~np.eye(len(names), dtype=bool)
  labelled = int(relevant_SS.any(axis=1).sum()) >= LEAST // 4
  if not labelled:
    nearest_SK = np.argsort(-(new_SE @ new_SE.T) + 9 * np.eye(len(names)), axis=1)[:, :NEAREST]
    relevant_SS = np.zeros_like(relevant_SS)
    np.put_along_axis(relevant_SS, nearest_SK, True, axis=1)
  score = precision if labelled else kept
  truth, shares = score(new_SE @ new_SE.T, relevant_SS), {}
  for name, fit in maps().items():
    placed_SE = np.empty_like(new_SE)
    for fold in range(FOLDS):
      placed_SE[fold_S == fold] = fit(old_SD[fold_S != fold], new_SE[fold_S != fold])(old_SD[fold_S == fold])
    shares[name] = score(new_SE @ placed_SE.T, relevant_SS) / truth
  best = max(shares, key=lambda name: shares[name])
  queries = int(relevant_SS.any(axis=1).sum())
  measure = "mAP" if labelled else f"of the {NEAREST} nearest"
  return Gate(shares, measure, queries, maps()[best](old_SD, new_SE))


def precision(score_SS: np.ndarray, relevant_SS: np.ndarray) -> float:
  """Returns the mean average precision of queries that have anything relevant; a query never finds itself."""
  order_SS = np.argsort(-score_SS + 9 * np.eye(len(score_SS)), axis=1, kind="stable")
  hit_SS = np.take_along_axis(relevant_SS, order_SS, axis=1)
  precision_SS = np.cumsum(hit_SS, axis=1) / np.arange(1, len(score_SS) + 1)
  count_S = hit_SS.sum(axis=1)
  return float(((precision_SS * hit_SS).sum(axis=1)[count_S > 0] / count_S[count_S > 0]).mean())


def kept(score_SS: np.ndarray, relevant_SS: np.ndarray) -> float:
  """Returns the share of the relevant that are among the nearest."""
  order_SK = np.argsort(-score_SS + 9 * np.eye(len(score_SS)), axis=1, kind="stable")[:, :NEAREST]
  return float(np.take_along_axis(relevant_SS, order_SK, axis=1).mean())


def migrate(
  old: Collection, new: Collection, encode: Callable[[list[str]], dict[str, np.ndarray]], share: float
) -> Gate:
  """Fills a collection of another encoder: a sample encoded, all else placed by the best map; returns the gate.

  Args:
    old: a collection whose items come from a source.
    new: the other one; what is there is kept.
    encode: new features of items by their ids; those whose pictures cannot be read are left out.
    share: of the items that are encoded twice.

  Raises ValueError where there are too few items to learn a map from.
  """
  blocks = [block.living() for block in old.snapshot()[1]]
  names = [name for _, table in blocks for name in table.column("id").to_pylist()]
  old_ND = np.concatenate([np.zeros((0, old.width), np.float16), *(rows for rows, _ in blocks)])
  count = min(len(names), max(LEAST, round(share * len(names))))
  if count < LEAST:
    raise ValueError(f"{len(names)} items are too few to learn a map from, wanted {LEAST}; encode all of them anew")
  sample = np.sort(np.random.default_rng(0).permutation(len(names))[:count])
  stamps = [stamp for _, table in blocks for stamp in table.column(STAMP).to_pylist()]
  added = [i for i, stamp in enumerate(stamps) if stamp == ADDED]  # which no source brings again
  encoded = encode([names[i] for i in sorted({*sample.tolist(), *added})])
  there = [i for i in sorted({*sample.tolist(), *added}) if names[i] in encoded]
  if len(there) < LEAST:
    raise ValueError(f"only {len(there)} pictures of the sample can be read, wanted {LEAST}; look at the pictures")
  items = [old.get(names[i]) for i in there]
  instances = [None if item is None else item.metadata.get("instance") for item in items]
  new_SE = np.stack([encoded[names[i]] for i in there])
  found = gate(unit(old_ND[there]), new_SE, instances)
  types = dict(old.items.types)
  known = {name for block in new.snapshot()[1] for name in block.living()[1].column("id").to_pylist()}
  for item in items:
    if item is not None and item.id not in known:
      new.change([dataclasses.replace(item, feature=encoded[item.id])], types=types)
      known.add(item.id)
  for rows_ND, table in blocks:
    place(new, rows_ND, table.to_pylist(), found.map, known, types)
  about = {"from": list(old.encoder), "map": found.best, "share": found.shares[found.best], "measure": found.measure}
  write_record(new.folder / RECORD, {**about, "shares": found.shares, "queries": found.queries, "sample": len(there)})
  return found


def place(
  new: Collection, rows_ND: np.ndarray, about: list[dict[str, Any]], found: Map, known: set[str], types: dict[str, Any]
) -> None:
  """Puts the items of a block that are not `known` into a collection, by a map of their old features."""
  for at in range(0, len(about), BATCH):
    placed_BE = found(unit(rows_ND[at : at + BATCH]))
    items = []
    for row, placed_E in zip(about[at : at + BATCH], placed_BE, strict=True):
      if row["id"] not in known and row[STAMP] != ADDED:
        metadata = {k: as_plain(v) for k, v in row.items() if k not in ("id", *HIDDEN) and v is not None}
        items.append(Item(row["id"], metadata, placed_E, "", PLACED))
    if items:
      new.change(items, types=types)


def is_placed(block: Block) -> np.ndarray:
  """Returns which items of a block are placed by a map (bool N)."""
  return np.asarray(pc.equal(block.table.column(STAMP), PLACED).to_numpy())


def told(folder: Path) -> dict[str, Any] | None:
  """Returns what a migration into a collection's folder found; None where there was none."""
  return read_record(folder / RECORD) if (folder / RECORD).exists() else None
