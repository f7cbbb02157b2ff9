"""A query's score as a sum: each part through its own head, its score times its weight (`qat_jax.search.sums`).

Here each query has summands of its own, however many; `ranking` puts those of many queries into one batch.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from qat_jax.search.sums import add, same_map
from qat_jax.types import Adaptation


@dataclasses.dataclass(frozen=True)
class Summand:
  """A weight times the score of one adaptation."""

  adaptation: Adaptation  # of one query, NumPy arrays
  gallery: str  # its name in the service: frozen, or the query type that it was prepared for
  weight: float = 1.0
  head: str | None = None  # the query type of the head that made it; its index may find a shortlist


def rows_of(adaptation: Adaptation, count: int) -> list[Adaptation]:
  """Returns the first `count` queries of an adaptation as adaptations of one query, NumPy arrays."""
  on_host = jax.tree.map(np.asarray, adaptation.replace(frozen=None))
  return [on_host[row : row + 1] for row in range(count)]


def stacked(adaptations: Sequence[Adaptation], size: int) -> Adaptation:
  """Returns adaptations of one query each as one adaptation of `size` queries; the last one fills it up."""
  rows = [adaptations[min(row, len(adaptations) - 1)] for row in range(size)]
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


def fewer(summands: Sequence[Summand]) -> list[Summand]:
  """Returns fewer summands of the same sum, weights above 0: one for each gallery and map. A zero sum has none."""
  groups: list[list[Summand]] = []
  for one in summands:
    like = lambda group, one=one: group[0].gallery == one.gallery and same_map(group[0].adaptation, one.adaptation)
    group = next((group for group in groups if like(group)), None)
    if group is None:
      groups.append([one])
    else:
      group.append(one)
  made = []
  for group in groups:
    adaptation, (weight,) = add([one.adaptation for one in group], [np.array([one.weight]) for one in group])
    if weight > 0:
      on_host = jax.tree.map(np.asarray, adaptation)
      made.append(dataclasses.replace(group[0], adaptation=on_host, weight=float(weight)))
  return made


def mean_of(summands: Sequence[Summand], scores: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the weighted mean of the summands' scores of the same items."""
  total = sum(one.weight for one in summands)
  weighed = [one.weight / total * np.asarray(x, np.float64) for one, x in zip(summands, scores, strict=True)]
  return np.sum(weighed, axis=0)
