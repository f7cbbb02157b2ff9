"""What the indexes of other programs have in common: ids, units, and requests in pieces."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from qat_jax.search.index import Ids, Metric, as_queries, as_ranking, check_stored, fetched, inner_products
from qat_jax.types import Ranking

QUERIES = 64  # of one request
FETCHED = 1000  # vectors of one request
SAMPLE = 256  # items whose length tells whether an index holds unit vectors
ID = "id"  # the column of the names that `build` was given


class StoredIndex:
  """An index over what another program stores."""

  width: int
  metric: Metric
  unit: bool
  space: str
  integers: bool  # its ids are, as far as is known
  where: str  # what it is called in errors

  def _searched(
    self, query_QD: np.ndarray | jax.Array, k: int, answers: Callable[[np.ndarray], Iterable[tuple[Sequence, Any]]]
  ) -> Ranking:
    """Returns the ranking that `answers` gives block by block: for each query names, and what the metric computes."""
    query_QD, found = as_queries(query_QD, self.width, k), []
    for start in range(0, len(query_QD), QUERIES):
      block_QD = query_QD[start : start + QUERIES]
      for query_D, (names, values) in zip(block_QD, answers(block_QD), strict=True):
        found.append((names, inner_products(self.metric, values, float(np.linalg.norm(query_D)))))
    return as_ranking(found, k, self.integers)

  def fetch(self, ids: Ids) -> np.ndarray:
    """Returns the vectors (ND, float32) of some of its ids; raises KeyError for one that is not there."""
    names = np.asarray(ids, object).tolist()
    vectors: dict[Any, Any] = {}
    for start in range(0, len(names), FETCHED):
      some = names[start : start + FETCHED]
      rows = self._rows(some)
      if len(rows) > len(some):
        raise ValueError(f"the ids of {self.where} name several rows or points; each must name one item")
      vectors |= {name: vector for name, vector in rows if vector is not None}
    return fetched(vectors, names, self.unit, self.where)

  def _rows(self, names: list[Any]) -> list[tuple[Any, Any]]:
    """Returns name and vector (None where it has none) of each stored item that has one of the names."""
    raise NotImplementedError

  def _check(self, sample: Sequence[Any] | np.ndarray, unit: bool) -> None:
    """Raises ValueError where the order of its scores would not be that of cosines, as far as some vectors show."""
    check_stored(self.where, self.metric, unit, np.asarray(sample, np.float32) if len(sample) else None)


def needed(module: str, index: str, how: str) -> Any:
  """Returns a package; raises ImportError that says how to install it."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(f"{index} needs the package {module}: {how}") from error
