"""Evidence: how likely it is that what a search puts first is the thing, and when to say that nothing here is.

A score that is high in one gallery is low in another, so a fixed threshold does not survive a new gallery. Planting
does. An adapter keeps queries of validation, with images of what they look for (`Planted`). In a new gallery the best
item of such a query is a false alarm: its thing is not there. With its own images beside the gallery, the best of both
is what a search would show if the thing were there. From the two sets of scores come thresholds. A logistic curve gives
the probability that an item is the thing, if it is as likely there as not. The new gallery needs no labels.

Scores of different queries have to be comparable. Where PLDA or experts serve, a score becomes the whole log likelihood
ratio, with what depends on the query alone; other heads' scores are taken as they are.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qat_jax.adapter import Adapter
from qat_jax.models.head import Head
from qat_jax.planted import Planted
from qat_jax.sealed import read_record, write_record
from qat_jax.search.rank import GalleryLike, check_search, rank, score
from qat_jax.stages import fingerprint
from qat_jax.types import Gallery, Ranking

BLOCK = 256  # planted queries that are ranked between two writes
FEW = 50  # planted queries below which nothing is calibrated
APART = 0.65  # area under the curve, below which scores do not tell what is there from what is not
SAME = 1e-5  # of a score: an item that scores so like an own image is one
RIDGE = 1e-3  # of the logistic curve's slope, in units of the scores' spread

Status = Literal["calibrated", "not calibrated", "not known"]


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What the scores of one head are worth in one gallery.

  Args:
    head: whose scores.
    absent: the best score of each planted query in the gallery, where its thing is not (A, float64).
    present: the best score with its own images beside the gallery (A).
    right: which of those are scores of own images (A, bool).
    rival: the score of what is most like the query, but is not the thing (A); None where the adapter keeps no rivals.
  """

  head: Head
  absent: np.ndarray
  present: np.ndarray
  right: np.ndarray
  rival: np.ndarray | None = None

  @property
  def area(self) -> float:
    """The area under the ROC curve: how often a query whose thing is there scores above one whose thing is not."""
    order = np.sort(self.absent)
    below, equal = np.searchsorted(order, self.present), np.searchsorted(order, self.present, "right")
    return float((below + equal).mean() / 2 / max(len(order), 1)) if len(order) else 0.5

  @property
  def status(self) -> Status:
    """`not calibrated` without enough planted queries; `not known` where scores do not tell."""
    if len(self.absent) < FEW:
      return "not calibrated"
    return "calibrated" if self.area >= APART else "not known"

  def of(self, ranking: Ranking, query_QD: npt.ArrayLike) -> Ranking:
    """Returns a ranking of the head's with `evidence` (QK, float32): the probability that an item is the thing.

    `query_QD` holds the frozen features of the queries. NaN stands for what is not known, and for padding.
    """
    evidence_QK = self.probability(self.comparable(ranking.scores, query_QD))
    return ranking.replace(evidence=np.where(np.isfinite(ranking.scores), evidence_QK, np.nan).astype(np.float32))

  def comparable(self, score_QK: npt.ArrayLike, query_QD: npt.ArrayLike) -> np.ndarray:
    """Returns scores of the head's (QK) so that those of different queries can be compared (float64)."""
    times_Q, plus_Q = self.head.whole(np.asarray(query_QD))
    return np.asarray(score_QK, np.float64) * times_Q[:, None] + plus_Q[:, None]

  def probability(self, comparable: np.ndarray) -> np.ndarray:
    """Returns the probability that an item with a comparable score is the thing; NaN where it is not known."""
    if self.status != "calibrated":
      return np.full(np.shape(comparable), np.nan)
    slope, offset = self._curve
    return 1 / (1 + np.exp(-np.clip(slope * np.asarray(comparable) + offset, -50, 50)))

  def least(self, alarms: float | None = None, kept: float | None = None) -> float:
    """Returns the evidence to ask for, so that a share of queries is answered; NaN where it is not known.

    Args:
      alarms: of the queries whose thing is not there, the share that is answered all the same.
      kept: of the queries whose thing is there, the share that is answered.

    Raises ValueError unless one of both is given, between 0 and 1.
    """
    share, scores = (alarms, self.absent) if kept is None else (kept, self.present)
    if share is None or (alarms is None) == (kept is None) or not 0 < share < 1:
      raise ValueError(f"alarms is {alarms}, kept is {kept}; give one of them, between 0 and 1")
    if self.status != "calibrated":
      return float("nan")
    return float(self.probability(np.quantile(scores, 1 - share, method="higher")))

  @property
  def _curve(self) -> tuple[float, float]:
    """The logistic curve through both sets: a query's thing is there, its rival beside it, or neither; a half each."""
    rival = np.full(len(self.present), -np.inf) if self.rival is None else self.rival
    score_N = np.concatenate([self.absent, np.maximum(self.present, rival)])
    right_N = np.concatenate([np.zeros(len(self.absent)), (self.right & (self.present >= rival)).astype(float)])
    centre, spread = float(np.median(score_N)), float(score_N.std()) or 1.0
    x_N2 = np.stack([(score_N - centre) / spread, np.ones(len(score_N))], axis=1)
    weight_2, ridge_22 = np.zeros(2), np.diag([RIDGE, 1e-9]) * len(score_N)
    for _ in range(100):  # Newton's method
      chance_N = 1 / (1 + np.exp(-np.clip(x_N2 @ weight_2, -50, 50)))
      slope_22 = (x_N2 * (chance_N * (1 - chance_N))[:, None]).T @ x_N2 + ridge_22
      step_2 = np.linalg.solve(slope_22, x_N2.T @ (right_N - chance_N) - ridge_22 @ weight_2)
      weight_2 += step_2 * min(1.0, 5 / max(float(np.abs(step_2).max()), 1e-12))
      if np.abs(step_2).max() < 1e-10:
        break
    return float(weight_2[0] / spread), float(weight_2[1] - weight_2[0] * centre / spread)


def calibrate(
  adapter: Adapter,
  gallery: GalleryLike,
  query_type: str | None = None,
  folder: str | os.PathLike | None = None,
) -> Evidence:
  """Returns what a head's scores are worth in a gallery, by planting the adapter's validation queries in it.

  Args:
    adapter: with planted queries, as training keeps them.
    gallery: prepared for the head, as `rank` takes it.
    query_type: whose head; None where all are the same.
    folder: where the scores of planted queries are kept: a killed call goes on there, and the next one only reads.

  The best item of each planted query costs one ranking. A query whose own image is in the gallery is left out. Raises
  as `rank` does.
  """
  head, name = adapter.head(query_type), query_type or next(iter(adapter.heads))
  planted = adapter.planted.get(name, Planted.none(adapter.width))
  if not len(planted):
    return Evidence(head, np.zeros(0), np.zeros(0), np.zeros(0, bool))
  adaptation = adapter(planted.query.astype(np.float32), name)
  gallery, _ = check_search(adaptation, gallery, 1)
  own_Q = _best(adapter, name, planted, planted.own, planted.owner)
  absent_Q = np.concatenate(
    [
      _kept(folder, name, adapter, gallery, start, lambda rows: rank(adaptation[rows], gallery, 1).scores[:, 0])
      for start in range(0, len(planted), BLOCK)
    ]
  )
  elsewhere_Q = np.abs(absent_Q - own_Q) > SAME * np.maximum(np.abs(own_Q), 1e-3)
  times_Q, plus_Q = head.whole(planted.query.astype(np.float32))
  whole = lambda score_Q: times_Q * np.asarray(score_Q, np.float64) + plus_Q
  absent_Q, own_Q, rival = whole(absent_Q), whole(own_Q), None
  if planted.rival is not None:
    rival = whole(_best(adapter, name, planted, planted.rival, np.arange(len(planted))))[elsewhere_Q]
  present_Q = np.maximum(absent_Q, own_Q)
  return Evidence(head, absent_Q[elsewhere_Q], present_Q[elsewhere_Q], (own_Q >= absent_Q)[elsewhere_Q], rival)


def _best(adapter: Adapter, query_type: str, planted: Planted, items_MD: np.ndarray, owner_M: np.ndarray) -> np.ndarray:
  """Returns the score of the best item of each planted query (Q).

  Args:
    adapter, query_type: whose scores.
    planted: the queries.
    items_MD, owner_M: frozen features, and the query that each is for, in rising order.
  """
  best_Q, items = np.full(len(planted), -np.inf), items_MD.astype(np.float32)
  for start in range(0, len(planted), BLOCK):
    rows = slice(start, start + BLOCK)
    mine_M = np.flatnonzero((owner_M >= start) & (owner_M < start + BLOCK))
    adaptation = adapter(planted.query[rows].astype(np.float32), query_type)
    score_QM = np.asarray(score(adaptation, adapter.prepare(items[mine_M], query_type)))
    np.maximum.at(best_Q, owner_M[mine_M], score_QM[owner_M[mine_M] - start, np.arange(len(mine_M))])
  return best_Q


def _kept(
  folder: str | os.PathLike | None, query_type: str, adapter: Adapter, gallery: Gallery, start: int, scores: Any
) -> np.ndarray:
  """Returns the scores of a block of planted queries, of the folder where it has them; else they are written there."""
  rows = slice(start, start + BLOCK)
  if folder is None:
    return np.asarray(scores(rows), np.float64)
  what = getattr(gallery, "fingerprint", None)
  reads = fingerprint(
    adapter=adapter.fingerprint, planted=adapter.planted[query_type].digest, gallery=what, block=start
  )
  path = pathlib.Path(folder) / f"planted-{query_type}-{start}.json"
  if what is not None and path.is_file():
    kept = read_record(path)
    if kept.get("reads") == reads:
      return np.array(kept["scores"], np.float64)
  score_Q = np.asarray(scores(rows), np.float64)
  if what is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, {"reads": reads, "scores": score_Q.tolist()})
  return score_Q
