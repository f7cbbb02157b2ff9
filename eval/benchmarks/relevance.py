"""What is right for each query: the noun that every benchmark hands to the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
