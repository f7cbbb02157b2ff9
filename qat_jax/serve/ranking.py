"""Terms → rankings: many terms in one batch, and searches with several terms by the sums of their scores."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qat_jax.adaptation import fold
from qat_jax.search.grouping import grouped
from qat_jax.search.index import Index
from qat_jax.search.rank import rank, rerank
from qat_jax.search.sums import Term, rank_sum
from qat_jax.serve import encoding
from qat_jax.serve.limits import Refused
from qat_jax.serve.piecewise import shortlist
from qat_jax.serve.searches import Search, ragged
from qat_jax.serve.summands import Summand, stacked
from qat_jax.types import Adaptation, Gallery, Pieces, Ranking

SHORTLIST = 1000  # items at least that an index gives to be ranked exactly
FEW = 4096  # allowed items up to which each query has its own list, so that queries with any filters go together
KS = (20, 100, 1000)  # results that are searched for: few numbers, so that queries with any k go together
DEPTH = 1000  # items of each summand's list, at most, where summands are ranked one by one


class Ranker:
  """What ranks the terms of searches."""

  def __init__(self, galleries: Mapping[str, Gallery], indexes: Mapping[str, Index | Mapping[int, Index]]) -> None:
    """`indexes`: by query type; of a gallery of pieces, by the places of those that have one."""
    self.galleries, self.indexes = galleries, indexes

  def rank(self, jobs: Sequence[Search], summands: Sequence[list[Summand]]) -> list[tuple[Ranking, bool] | Refused]:
    """Returns the ranking of each search and whether it is proven to be exact, or why there is none.

    Searches with one summand are ranked in batches, others one by one.
    """
    if not len(self.galleries["frozen"]):
      return [(Ranking(np.zeros(0, np.int32), np.zeros(0, np.float32)), True)] * len(jobs)
    pairs = list(zip(jobs, summands, strict=True))
    each = iter(self._each([(some[0], job, job.variety.depth(job.k)) for job, some in pairs if len(some) == 1]))
    rankings = [next(each) if len(some) == 1 else self._sum(job, some) for job, some in pairs]
    return [(one, True) if isinstance(one, Ranking) else one for one in rankings]

  def _sum(self, job: Search, summands: list[Summand]) -> tuple[Ranking, bool] | Refused:
    """Returns the best items by the weighted mean of several scores."""
    terms = [Term(one.adaptation, self.galleries[one.gallery], one.weight) for one in summands]
    exclude = None if job.exclude is None else job.exclude[None]
    depth = job.variety.depth(job.k)
    k = next((k for k in KS if k >= depth), depth)
    try:
      ranking, proven_Q = rank_sum(terms, k, exclude=exclude, allowed=job.allowed, group=job.group, depth=DEPTH)
    except ValueError as error:
      return _broken(error)
    there_K = ranking.ids[0] >= 0
    ids, scores = (x[0][there_K][:depth] for x in (ranking.ids, ranking.scores))
    return Ranking(ids, scores / np.float32(sum(one.weight for one in summands))), bool(proven_Q[0])

  def _each(self, requests: Sequence[tuple[Summand, Search, int]]) -> list[Ranking | Refused]:
    """Returns the best k items of each term; terms of one gallery, shape and mask are ranked together."""
    results: list[Any] = [None] * len(requests)
    masks: list[np.ndarray | None] = [None]  # 0: all items, or a list of its own

    def mask_of(job: Search) -> int:
      allowed = None if _is_few(job) else job.allowed
      place = next((i for i, mask in enumerate(masks) if mask is allowed), len(masks))
      masks.extend([allowed] if place == len(masks) else [])
      return place

    kinds = [(mask_of(job), _is_few(job), id(job.group)) for _, job, _ in requests]
    for members, adaptation, gallery in self._batches([term for term, _, _ in requests], kinds):
      try:
        ranking = self._together([requests[i] for i in members], adaptation, gallery)
      except ValueError as error:  # queries were checked: it is the gallery's fault
        results = [_broken(error) if i in members else result for i, result in enumerate(results)]
        continue
      for row, i in enumerate(members):
        there_K = ranking.ids[row] >= 0
        results[i] = Ranking(*(array[row][there_K][: requests[i][2]] for array in (ranking.ids, ranking.scores)))
    return results

  def _together(
    self, requests: Sequence[tuple[Summand, Search, int]], adaptation: Adaptation, gallery: Gallery
  ) -> Ranking:
    """Returns the ranking of requests whose terms are the rows of one adaptation, with one mask and one grouping."""
    most, (term, first, _) = max(k for _, _, k in requests), requests[0]
    k = next((k for k in KS if k >= most), most)
    exclude = ragged([job.exclude for _, job, _ in requests], len(adaptation))
    allowed = first.allowed
    if _is_few(first):
      allowed = ragged([job.allowed for _, job, _ in requests], len(adaptation))
    if term.head in self.indexes and allowed is None:
      return self._by_index(str(term.head), adaptation, gallery, k, exclude, first.group)
    return rank(adaptation, gallery, k, exclude=exclude, allowed=allowed, group=first.group)

  def _batches(self, terms: Sequence[Summand], kinds: Sequence[Any]) -> Iterator[tuple[list[int], Adaptation, Gallery]]:
    """Yields terms with the same gallery, shape of the map and kind: positions, one adaptation, the gallery."""
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, (term, kind) in enumerate(zip(terms, kinds, strict=True)):
      shape = (term.adaptation.gate.shape, term.adaptation.left.shape)
      groups[(term.gallery, term.head in self.indexes, *shape, kind)].append(i)
    for members in groups.values():
      for start in range(0, len(members), encoding.SIZES[-1]):
        some = members[start : start + encoding.SIZES[-1]]
        batch = stacked([terms[i].adaptation for i in some], encoding.size_of(len(some)))
        yield some, batch, self.galleries[terms[some[0]].gallery]

  def _by_index(
    self, name: str, adaptation: Adaptation, gallery: Gallery, k: int, exclude: np.ndarray, group: np.ndarray | None
  ) -> Ranking:
    """Returns the exact order of an index's shortlist, without what is excluded; of groups where items have some."""
    if group is not None:
      return grouped(lambda depth: self._by_index(name, adaptation, gallery, depth, exclude, None), k, group)
    most, index = min(len(gallery), max(SHORTLIST, 2 * k) + exclude.shape[1]), self.indexes[name]
    if isinstance(index, Mapping):
      assert isinstance(gallery, Pieces)
      ids_QS = shortlist(index, adaptation, gallery, most, k + exclude.shape[1])
    else:
      ids_QS = np.array(index.search(np.asarray(fold(adaptation)), most).ids)
    for row, without in enumerate(exclude):
      ids_QS[row][np.isin(ids_QS[row], without[without >= 0])] = -1
    return rerank(adaptation, gallery, ids_QS, k)

  def scores(self, requests: Sequence[tuple[Summand, np.ndarray]]) -> list[np.ndarray]:
    """Returns the score of each term for its items (positions, each once), in their order."""
    results: list[Any] = [None] * len(requests)
    for members, adaptation, gallery in self._batches([term for term, _ in requests], [None] * len(requests)):
      ranking = rerank(adaptation, gallery, ragged([requests[i][1] for i in members], len(adaptation)))
      for row, i in enumerate(members):
        ids, positions = ranking.ids[row], requests[i][1]
        order = np.argsort(ids, kind="stable")
        results[i] = ranking.scores[row][order[np.searchsorted(ids, positions, sorter=order)]]
    return results


def _is_few(job: Search) -> bool:
  """Says whether a search has a short list of what it may find."""
  return job.allowed is not None and job.allowed.dtype != bool and len(job.allowed) <= FEW


def _broken(error: ValueError) -> Refused:
  return Refused(503, "broken", f"the gallery or the adapter cannot be searched: {error}")
