"""Diffusion: a query's score spreads along the mutual nearest-neighbour graph of the gallery, by conjugate gradients.

A query enters at its nearest gallery items, weighted by cosine^γ; what reaches an item is added to its cosine. Offline
O(N²·D) for the graph of N items (k edges each at most). Online `diffusion` costs O(N·(D + k·steps)) a query, and
`diffusion_shortlist` a search and O(S·k·steps) for the S items of its shortlist, whatever N is.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

import qat_jax
from eval.baselines.graph import diffuse, mutual_graph, neighbours_of
from eval.ranking import Method, Search
from qat_jax.adaptation import normalise
from qat_jax.types import Ranking
from qat_jax.validation import Validator

SHORTLIST = 500
QUERY_BLOCK = 64
TUNING_QUERIES = 512


class Choice(NamedTuple):
  """What is tuned."""

  neighbours: int = 20
  gamma: float = 3.0
  alpha: float = 0.9
  entries: int = 5  # gallery items at which the query enters
  weight: float = 1.0  # of the diffused score, its largest scaled to 1, beside the cosine


GRID: dict[str, tuple] = {
  "weight": (0.03, 0.1, 0.3, 1.0, 10.0),
  "neighbours": (5, 20, 50),
  "alpha": (0.5, 0.9, 0.99),
  "entries": (1, 5, 20),
  "gamma": (1.0, 3.0, 6.0),
}


class GraphedItems(NamedTuple):
  """A gallery, and its graph."""

  gallery_ND: jax.Array  # unit float32
  graph: sparse.csr_array


def fit(validator: Validator) -> Method | None:
  """Returns global diffusion, tuned. None for a validation gallery of one item."""
  return _fit(search_all, validator, "")


def fit_shortlist(validator: Validator) -> Method | None:
  """Returns diffusion on the graph cut down to each query's shortlist, tuned; the rest follows in its plain order."""
  return _fit(search_shortlist, validator, f"shortlist {SHORTLIST}, ")


def _fit(
  search: Callable[[GraphedItems, Choice, np.ndarray, int], Ranking], validator: Validator, note: str
) -> Method | None:
  gallery_ND = normalise(validator.gallery_ND)
  if len(gallery_ND) < 2:
    return None
  nearest = neighbours_of(gallery_ND, int(max(GRID["neighbours"])))
  subset = validator.subset(TUNING_QUERIES)

  @functools.cache
  def value(choice: Choice) -> float:
    items = GraphedItems(gallery_ND, mutual_graph(nearest, choice.neighbours, choice.gamma))
    return subset.of_search(functools.partial(search, items, choice))

  choice = best_choice(value)

  def prepare(gallery: Any) -> Search:
    unit_ND = normalise(jnp.asarray(gallery[:]))
    graph = mutual_graph(neighbours_of(unit_ND, choice.neighbours), choice.neighbours, choice.gamma)
    return functools.partial(search, GraphedItems(unit_ND, graph), choice)

  note += ", ".join(f"{name} {number:g}" for name, number in choice._asdict().items())
  most = 8.0 * choice.neighbours + 4  # an id and a weight an edge, a place a row
  return Method(prepare, note, bytes_per_item=most)


def best_choice(value: Callable[[Choice], float]) -> Choice:
  """Returns the best choice found by going through the grid twice, one number after the other."""
  choice = Choice()
  for name, numbers in [*GRID.items()] * 2:
    choice = max((choice._replace(**{name: number}) for number in numbers), key=value)
  return choice


def search_all(items: GraphedItems, choice: Choice, query_QD: np.ndarray, k: int) -> Ranking:
  """Returns the k items of the highest cosine + weight · f / max f, f diffused through the whole graph."""
  k = min(k, len(items.gallery_ND))
  ids, scores = [], []
  for start in range(0, len(query_QD), QUERY_BLOCK):
    plain = qat_jax.plain(jnp.asarray(query_QD[start : start + QUERY_BLOCK], jnp.float32))
    near = qat_jax.rank(plain, items.gallery_ND, min(choice.entries, len(items.gallery_ND)))
    right_NQ = np.zeros((len(items.gallery_ND), len(plain)), np.float32)
    np.put_along_axis(right_NQ, near.ids.T, entering(near.scores, choice.gamma).T, axis=0)
    diffused_QN = diffuse(items.graph, right_NQ, choice.alpha).T
    score_QN = fused(np.asarray(qat_jax.score(plain, items.gallery_ND)), diffused_QN, choice.weight)
    order_QK = np.argsort(-score_QN, axis=1, kind="stable")[:, :k]
    ids.append(order_QK.astype(np.int32))
    scores.append(np.take_along_axis(score_QN, order_QK, axis=1))
  return Ranking(np.concatenate(ids), np.concatenate(scores))


def search_shortlist(items: GraphedItems, choice: Choice, query_QD: np.ndarray, k: int) -> Ranking:
  """Returns the k nearest items, the shortlist at their head ordered by diffusion through its part of the graph."""
  size = min(SHORTLIST, len(items.gallery_ND))
  plain = qat_jax.plain(jnp.asarray(query_QD, jnp.float32))
  first = qat_jax.rank(plain, items.gallery_ND, min(max(k, size), len(items.gallery_ND)))
  ids_QK, score_QK = np.array(first.ids), np.array(first.scores)
  for ids_K, score_K in zip(ids_QK, score_QK, strict=True):
    near_S = ids_K[:size].copy()
    right_S1 = np.zeros((size, 1), np.float32)
    right_S1[: choice.entries, 0] = entering(score_K[: min(choice.entries, size)], choice.gamma)
    diffused_1S = diffuse(items.graph[near_S][:, near_S], right_S1, choice.alpha).T
    score_S = fused(score_K[None, :size], diffused_1S, choice.weight)[0]
    order_S = np.argsort(-score_S, kind="stable")
    ids_K[:size], score_K[:size] = near_S[order_S], score_S[order_S]
  return Ranking(ids_QK[:, :k], score_QK[:, :k])


def entering(cosine: np.ndarray, gamma: float) -> np.ndarray:
  """Returns with what weight a query enters at items: max(cosine, 0)^γ."""
  return np.maximum(cosine, 0.0) ** gamma


def fused(cosine_QN: np.ndarray, diffused_QN: np.ndarray, weight: float) -> np.ndarray:
  """Returns cosine + weight · f / max f (QN); never below the cosine."""
  diffused_QN = np.maximum(diffused_QN, 0.0)
  return cosine_QN + weight * diffused_QN / np.maximum(diffused_QN.max(axis=1, keepdims=True), 1e-30)
