"""Experts for image queries: clusters of instances, each with a probabilistic LDA of its own, in closed form.

The rows are read in chunks of whole instances: once for the instances' means, which are clustered, and once for two
sums of squares a cluster, float64. Every setting of the shrinkage is made from these sums, without reading again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit.discriminant import inverse_root
from qat_jax.fit.training import PLAIN, Training, covariance_of, evenly, mean_of
from qat_jax.models.head import Head
from qat_jax.validation import Validator

FLOORS = (0.03, 0.001, 0.003, 0.01, 0.1, 0.3)  # s: added to a covariance within, times its mean variance
POOLED = (300.0, 30.0, 2000.0)  # λ: degrees of freedom that the mean of all clusters' covariances counts for
SPACES = ("raw", "lda")  # where instances are clustered
OUTSIDE = ((0.1, 0.0), (0.0, 0.0), (1.0, 0.0), (0.0, 3.0), (0.0, 30.0))  # alpha and beta: what is taken off strangers
NUMBERS = (16, 2, 4, 8, 32)  # of experts
GRID = {"floor": FLOORS, "pooled": POOLED, "space": SPACES, "outside": OUTSIDE, "number": NUMBERS}  # in this order
FREEDOM = 200  # degrees of freedom within, for each expert, at the least: of fewer no covariance is known
LDA_SHRINKAGE = 0.03  # of the mean variance, in the space of LDA
FEW = 1000  # validation queries that the grid is compared on
CHUNK = 8192  # rows read at once
CLUSTERED = 65_536  # instances whose means are clustered; all others go to the nearest centre
ROUNDS, STARTS = 50, 3  # of k-means; of its starts that with the least distance is taken
SAMPLE = 4096  # training images on which lengths are taken
HIGHEST, LONGEST = 99.9, 99.0  # percentiles of what is taken off, and of the query's length


class Setting(NamedTuple):
  """What validation chooses."""

  floor: float = FLOORS[0]
  pooled: float = POOLED[0]
  space: str = SPACES[0]
  outside: tuple[float, float] = OUTSIDE[0]
  number: int = NUMBERS[0]


class Clusters(NamedTuple):
  """Cells around centres: a row x lies in that with the greatest x · direction + bias, its centre being the nearest."""

  direction_KD: np.ndarray
  bias_K: np.ndarray

  def of(self, x_ND: np.ndarray) -> np.ndarray:
    """Returns the cell of each row (N)."""
    return np.argmax(x_ND @ self.direction_KD.T + self.bias_K, axis=1)


class Sums(NamedTuple):
  """All that is known of clusters (float64): sums of squares, and a sample of what they were taken from."""

  clusters: Clusters
  within_KDD: np.ndarray  # around the means of instances
  freedom_K: np.ndarray  # degrees of freedom of these
  total_KDD: np.ndarray  # around the cluster's mean
  count_K: np.ndarray  # rows that these are taken over
  mean_KD: np.ndarray
  query_mean_KD: np.ndarray
  item_MD: np.ndarray  # a sample of items
  item_cluster_M: np.ndarray | None  # None where all of them count for every cluster
  query_MD: np.ndarray  # a sample of queries
  query_cluster_M: np.ndarray


def suffices(training: Training) -> bool:
  """Says whether second views, or lists of relevant images, suffice for two experts; text queries have none."""
  if training.relevant is not None:
    return training.query_type == "image" and _freedom(training.relevant.positives) >= FREEDOM * min(NUMBERS)
  freedom = len(training.instance) - len(np.unique(training.instance))
  return training.query_type == "image" and freedom >= FREEDOM * min(NUMBERS)


def experts(training: Training, validator: Validator, base: Head = PLAIN) -> Head | None:
  """Returns experts on what `base` makes of items, as wide as features; the numbers are the best on validation.

  Queries with lists of relevant images get `intents`, on plain items. None where second views do not suffice.
  """
  if not suffices(training):
    return None
  if training.relevant is not None:
    return intents(training.queries, training.relevant.positives, training.images, validator)
  rows = Rows(training.images, training.instance, base)
  numbers = [number for number in NUMBERS if number * FREEDOM <= rows.freedom]
  spaces = {"raw": np.eye(training.width), "lda": rows.lda()}
  return search(lambda number, space: rows.sums(number, spaces[space]), validator, base, GRID | {"number": numbers})


def intents(queries: Any, relevant: Sequence[np.ndarray], images: Any, validator: Validator) -> Head | None:
  """Returns experts for queries (QD) that each name the images (ND) that are relevant to them, by their rows.

  Clusters are the queries'. Items have one mean and one covariance; those within are of relevant images around their
  mean. None where relevant images do not suffice for two experts.
  """
  freedom = _freedom(relevant)
  if freedom < FREEDOM * min(NUMBERS):
    return None
  numbers = [number for number in NUMBERS if number * FREEDOM <= freedom]
  query_QD = np.asarray(unit(queries[:]), np.float64)
  mean_D = mean_of(images)
  total_DD, item_MD = covariance_of(images, mean_D), unit(images[evenly(len(images), SAMPLE)])
  within_1DD, _ = _relevant_sums(images, relevant, np.zeros(len(relevant), int), 1)
  lda_DD = _lda(within_1DD[0])

  def sums(number: int, space: str) -> Sums:
    clusters = cluster(query_QD, number, lda_DD if space == "lda" else np.eye(len(lda_DD)))
    cluster_Q = clusters.of(query_QD)
    within_KDD, freedom_K = _relevant_sums(images, relevant, cluster_Q, number)
    count_K = np.bincount(cluster_Q, minlength=number)
    query_mean_KD = _group_sums(query_QD, cluster_Q, number) / np.maximum(count_K, 1)[:, None]
    shared = lambda x: np.broadcast_to(x, (number, *np.shape(x)))
    some = evenly(len(query_QD), SAMPLE)
    total_KDD, number_K = shared(total_DD * len(images)), shared(np.float64(len(images)))
    known = (clusters, within_KDD, freedom_K, total_KDD, number_K, shared(mean_D), query_mean_KD)
    return Sums(*known, item_MD, None, query_QD[some], cluster_Q[some])

  grid = GRID | {"number": numbers, "space": SPACES[::-1], "outside": ((0.0, 0.0),)}
  return search(sums, validator, PLAIN, grid)


def search(sums: Any, validator: Validator, base: Head, grid: dict[str, Sequence[Any]]) -> Head:
  """Returns the head that is the best on validation, along one number of the grid after the other.

  `sums(number, space)` gives what clusters are known by; it is called once for each pair.
  """
  few, sums = validator.subset(FEW), functools.cache(sums)
  heads: dict[Setting, Head] = {}

  @functools.cache
  def value(setting: Setting) -> float:
    heads[setting] = head_of(sums(setting.number, setting.space), base, setting)
    return few(heads[setting])

  best = Setting(**{name: values[0] for name, values in grid.items()})
  for name, values in grid.items():
    best = max((best._replace(**{name: one}) for one in values), key=value)
  return heads[best]


class Rows:
  """Training images as a head prepares them, one instance after the other."""

  def __init__(self, images: Any, instance_N: np.ndarray, base: Head) -> None:
    """Keeps the order of the rows; none is read."""
    self.images, self.base = images, base
    _, code_N, self.count_I = np.unique(instance_N, return_inverse=True, return_counts=True)
    self.order_N, self.end_I = np.argsort(code_N, kind="stable"), np.cumsum(self.count_I)
    self.freedom = int(np.sum(self.count_I - 1))

  def read(self, rows: np.ndarray) -> np.ndarray:
    """Returns unit rows (float64)."""
    x_ND = self.images[rows]
    if self.base is PLAIN:
      return np.asarray(unit(x_ND), np.float64)
    spare = np.zeros((CHUNK - len(rows), x_ND.shape[1]), np.float32)  # one program for chunks of all sizes
    return np.asarray(self.base.prepare(np.concatenate([x_ND, spare])), np.float64)[: len(rows)]

  def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows of whole instances (ND), about CHUNK of them, and how many are of each (I).

    Of an instance of more than CHUNK images as many are read, evenly spaced.
    """
    first = 0
    while first < len(self.count_I):
      start = self.end_I[first] - self.count_I[first]
      last = max(first + 1, int(np.searchsorted(self.end_I, start + CHUNK, side="right")))
      rows = self.order_N[start : self.end_I[last - 1]]
      if len(rows) > CHUNK:
        rows = rows[evenly(len(rows), CHUNK)]
      yield self.read(rows), self.count_I[first:last] if last > first + 1 else np.array([len(rows)])
      first = last

  @functools.cached_property
  def mean_ID(self) -> np.ndarray:
    """The means of up to CLUSTERED instances, evenly spaced."""
    every = -(-len(self.count_I) // CLUSTERED)
    means, seen = [], 0
    for x_ND, count_I in self.chunks():
      means.append(_means(x_ND, count_I)[-seen % every :: every])
      seen += len(count_I)
    return np.concatenate(means)

  def lda(self) -> np.ndarray:
    """Returns the map (DD) after which images of one instance have the same variance in all directions."""
    width = self.mean_ID.shape[1]
    return _lda(self.sums(1, np.eye(width)).within_KDD[0])

  def sums(self, number: int, space_DE: np.ndarray) -> Sums:
    """Returns what so many clusters of instances' means are known by, clustered after a map."""
    clusters = cluster(self.mean_ID, number, space_DE)
    width = len(space_DE)
    total_KDD, between_KDD = np.zeros((2, number, width, width))
    sum_KD, count_K, freedom_K = np.zeros((number, width)), np.zeros(number), np.zeros(number)
    samples, every, seen = [], max(1, len(self.order_N) // SAMPLE), 0
    for x_ND, count_I in self.chunks():
      mean_ID = _means(x_ND, count_I)
      cluster_I = clusters.of(mean_ID)
      cluster_N = np.repeat(cluster_I, count_I)
      sum_KD += _group_sums(x_ND, cluster_N, number)
      count_K += np.bincount(cluster_N, minlength=number)
      freedom_K += np.bincount(cluster_I, count_I - 1, minlength=number)
      for k in np.unique(cluster_I):
        own_ND, own_ID = x_ND[cluster_N == k], (mean_ID * np.sqrt(count_I)[:, None])[cluster_I == k]
        total_KDD[k] += own_ND.T @ own_ND
        between_KDD[k] += own_ID.T @ own_ID
      samples.append((x_ND[-seen % every :: every], cluster_N[-seen % every :: every]))
      seen += len(x_ND)
    mean_KD = sum_KD / np.maximum(count_K, 1)[:, None]
    around_KDD = total_KDD - np.einsum("K,KD,KE->KDE", count_K, mean_KD, mean_KD)
    row_MD, cluster_M = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    within_KDD = total_KDD - between_KDD
    return Sums(
      *(clusters, within_KDD, freedom_K, around_KDD, count_K),
      *(mean_KD, mean_KD, row_MD, cluster_M, row_MD, cluster_M),
    )


def cluster(point_ID: np.ndarray, number: int, space_DE: np.ndarray) -> Clusters:
  """Returns the cells of k-means of points after a map: of several starts (k-means++) that with the least distance."""
  point_IE = point_ID[evenly(len(point_ID), CLUSTERED)] @ space_DE
  square_I = np.square(point_IE).sum(axis=1)
  distances = lambda centre_KE: square_I[:, None] - 2 * point_IE @ centre_KE.T + np.square(centre_KE).sum(axis=1)
  results = []
  for seed in range(STARTS if number > 1 else 1):
    rng = np.random.default_rng(seed)
    centre_KE = point_IE[rng.integers(len(point_IE))][None]
    nearest_I = np.maximum(distances(centre_KE)[:, 0], 0)
    while len(centre_KE) < number:
      share_I = nearest_I / nearest_I.sum() if nearest_I.sum() > 0 else None
      centre_KE = np.concatenate([centre_KE, point_IE[rng.choice(len(point_IE), p=share_I)][None]])
      nearest_I = np.minimum(nearest_I, np.maximum(distances(centre_KE[-1:])[:, 0], 0))
    code_I = np.full(len(point_IE), -1)
    for _ in range(ROUNDS):
      distance_IK = distances(centre_KE)
      before_I, code_I = code_I, np.argmin(distance_IK, axis=1)
      if np.array_equal(before_I, code_I):
        break
      size_K = np.bincount(code_I, minlength=number)
      mean_KE = _group_sums(point_IE, code_I, number) / np.maximum(size_K, 1)[:, None]
      centre_KE = np.where(size_K[:, None] > 0, mean_KE, centre_KE)
    results.append((distances(centre_KE).min(axis=1).sum(), centre_KE))
  _, centre_KE = min(results, key=lambda result: result[0])
  return Clusters(centre_KE @ space_DE.T, -np.square(centre_KE).sum(axis=1) / 2)


def head_of(sums: Sums, base: Head, setting: Setting) -> Head:
  """Returns the experts of clusters with a setting of the shrinkage."""
  number, width = sums.mean_KD.shape
  pooled_DD = sums.within_KDD.sum(axis=0) / sums.freedom_K.sum()
  spread_DD = sums.total_KDD.sum(axis=0) / sums.count_K.sum()
  map_KDD, ratio_KD, total_KD, offset_K = (
    np.zeros((number, width, width)),
    *np.zeros((2, number, width)),
    np.zeros(number),
  )
  for k in range(number):
    within_DD = (sums.within_KDD[k] + setting.pooled * pooled_DD) / (sums.freedom_K[k] + setting.pooled)
    total_DD = (sums.total_KDD[k] + setting.pooled * spread_DD) / (sums.count_K[k] + setting.pooled)
    map_KDD[k], value_D = discriminant_of(within_DD, total_DD, setting.floor)
    ratio_KD[k], total_KD[k] = np.maximum(value_D, 0), np.maximum(1 + value_D, 1e-6)
    offset_K[k] = np.linalg.slogdet(map_KDD[k])[1] - np.log(total_KD[k]).sum() / 2
  (alpha, beta), clusters = setting.outside, sums.clusters
  found: dict[str, Any] = {"mean": sums.mean_KD, "query_mean": sums.query_mean_KD, "direction": clusters.direction_KD}
  found |= {"bias": clusters.bias_K, "map": map_KDD, "ratio": ratio_KD, "total": total_KD, "alpha": alpha, "beta": beta}
  found |= {"offset": offset_K - offset_K.max(), "high": offset_K, "middle": offset_K, "typical": 1.0, "longest": 1.0}
  found |= lengths(sums, base, found)
  constants = {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}
  inner = {name: {"head": tree} if tree else {} for name, tree in base.variables.items()}
  variables = {"params": inner["params"], "constants": inner["constants"] | constants}
  note = f"{number} experts, clustered in the {setting.space} space, floor {setting.floor}, pooled {setting.pooled:g}"
  settings = {"form": base.form, "settings": base.settings, "experts": number}
  return Head("experts", settings, variables, f"{note}, alpha {alpha:g}, beta {beta:g}")


def discriminant_of(within_DD: np.ndarray, total_DD: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns coordinates V and values ℓ: Vᵀ W V = I and Vᵀ (T − W) V = diag(ℓ), W being `within` with its floor."""
  more = floor * np.trace(within_DD) / len(within_DD)
  whiten_DD = inverse_root(within_DD, more)
  between_DD = total_DD - within_DD - more * np.eye(len(within_DD))
  value_D, vector_DD = np.linalg.eigh(whiten_DD @ between_DD @ whiten_DD)
  return whiten_DD @ vector_DD, value_D


def lengths(sums: Sums, base: Head, found: dict[str, Any]) -> dict[str, Any]:
  """Returns how long queries and items get: `typical`, `high` and `middle` of each expert, `longest` of all items."""
  number = len(sums.mean_KD)
  weight_KD = found["ratio"] / (1 + 2 * found["ratio"])
  y = lambda k: (sums.query_MD[sums.query_cluster_M == k] - sums.query_mean_KD[k]) @ found["map"][k]
  length = [np.linalg.norm((y(k) * weight_KD[k]) @ found["map"][k].T, axis=1) for k in range(number)]
  typical = max(float(np.sqrt(np.mean(np.square(np.concatenate(length))))), 1e-12)
  some = {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}
  off_MK = np.asarray(_taken_off(number, some, jnp.asarray(sums.item_MD, jnp.float32)), np.float64)
  high_K, middle_K = np.zeros((2, number))
  for k in range(number):
    own_M = off_MK[:, k] if sums.item_cluster_M is None else off_MK[sums.item_cluster_M == k, k]
    own_M = own_M if len(own_M) else off_MK[:, k]
    high_K[k] = np.percentile(own_M, HIGHEST) + 2 * (np.percentile(length[k], LONGEST) if len(length[k]) else typical)
    middle_K[k] = (own_M.min() + high_K[k]) / 2
    # from the least to the highest, and the middle between them: so no item is longer than this, but for outliers
  off_K = (high_K - middle_K) / typical
  return {"typical": typical, "high": high_K, "middle": middle_K, "longest": np.sqrt(1 + np.square(off_K).sum())}


@functools.partial(jax.jit, static_argnums=0)
def _taken_off(number: int, constants: dict[str, jax.Array], x_ND: jax.Array) -> jax.Array:
  module: nn.Module = Head("experts", {"form": "plain", "settings": {}, "experts": number}, {}).module(x_ND.shape[1])
  return module.apply({"constants": constants}, x_ND, method="taken_off")  # type: ignore[return-value]


def _relevant_sums(
  images: Any, relevant: Sequence[np.ndarray], cluster_Q: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the sums of squares of relevant images around their mean (KDD), and their degrees of freedom (K)."""
  width = images[:1].shape[1]
  within_KDD, freedom_K = np.zeros((number, width, width)), np.zeros(number)
  for k in range(number):
    group: list[np.ndarray] = []
    rows = 0
    for query in [*np.flatnonzero(cluster_Q == k), None]:
      if rows and (query is None or rows + len(relevant[query]) > CHUNK):
        x_ND = np.asarray(unit(images[np.concatenate(group)]), np.float64)
        count_I = np.array([len(one) for one in group])
        x_ND -= np.repeat(_means(x_ND, count_I), count_I, axis=0)
        within_KDD[k] += x_ND.T @ x_ND
        freedom_K[k] += np.sum(count_I - 1)
        group, rows = [], 0
      if query is not None and len(relevant[query]) > 1:
        group.append(np.asarray(relevant[query], int))
        rows += len(relevant[query])
  return within_KDD, freedom_K


def _freedom(relevant: Sequence[np.ndarray]) -> int:
  return sum(max(len(rows) - 1, 0) for rows in relevant)


def _means(x_ND: np.ndarray, count_I: np.ndarray) -> np.ndarray:
  return np.add.reduceat(x_ND, np.cumsum(count_I) - count_I) / count_I[:, None]


def _group_sums(x_ND: np.ndarray, code_N: np.ndarray, number: int) -> np.ndarray:
  """Returns the sum of the rows of each group (KD)."""
  return (code_N[None] == np.arange(number)[:, None]).astype(x_ND.dtype) @ x_ND


def _lda(within_DD: np.ndarray) -> np.ndarray:
  return inverse_root(within_DD * (len(within_DD) / np.trace(within_DD)), LDA_SHRINKAGE)
