"""Clusters of training images or queries, and all that their experts are made from: two sums of squares a cluster.

Rows are read in chunks of whole instances and added up in float64. So memory is bounded by a chunk and K × D² numbers,
and every setting of the shrinkage is made from the sums, without reading again.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit.discriminant import inverse_root
from qat_jax.fit.training import PLAIN, evenly
from qat_jax.models.head import Head

LDA_SHRINKAGE = 0.03  # of the mean variance, in the space of LDA
CHUNK = 8192  # rows read at once
CLUSTERED = 65_536  # instances whose means are clustered; all others go to the nearest centre
ROUNDS, STARTS = 50, 3  # of k-means; of its starts that with the least distance is taken
SAMPLE = 4096  # training images on which lengths are taken


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


class InstanceRows:
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
    return lda_of(self.sums(1, np.eye(width)).within_KDD[0])

  def sums(self, number: int, space_DE: np.ndarray) -> Sums:
    """Returns what so many clusters of instances' means are known by, clustered after a map."""
    clusters = cluster(self.mean_ID, number, space_DE)
    width = len(space_DE)
    total_KDD, between_KDD = np.zeros((2, number, width, width))
    sum_KD, count_K, freedom_K = np.zeros((number, width)), np.zeros(number), np.zeros(number)
    samples, every, seen = [], -(-len(self.order_N) // SAMPLE), 0
    for x_ND, count_I in self.chunks():
      mean_ID = _means(x_ND, count_I)
      cluster_I = clusters.of(mean_ID)
      cluster_N = np.repeat(cluster_I, count_I)
      sum_KD += group_sums(x_ND, cluster_N, number)
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
      *(clusters, within_KDD, freedom_K, around_KDD, count_K), *(mean_KD, mean_KD, row_MD, cluster_M, row_MD, cluster_M)
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
      mean_KE = group_sums(point_IE, code_I, number) / np.maximum(size_K, 1)[:, None]
      centre_KE = np.where(size_K[:, None] > 0, mean_KE, centre_KE)
    results.append((distances(centre_KE).min(axis=1).sum(), centre_KE))
  _, centre_KE = min(results, key=lambda result: result[0])
  return Clusters(centre_KE @ space_DE.T, -np.square(centre_KE).sum(axis=1) / 2)


class RelevantLists:
  """Queries' lists of relevant images, each different list once."""

  def __init__(self, images: Any, relevant: Sequence[np.ndarray]) -> None:
    """Reads the images of each list once, for its mean; lists of one image say nothing."""
    self.images = images
    number: dict[bytes, int] = {}
    code = [number.setdefault(np.asarray(rows, int).tobytes(), len(number)) for rows in relevant]
    self.code_Q, self.rows = np.array(code, int), [np.frombuffer(key, int) for key in number]
    self.count_U = np.array([len(rows) for rows in self.rows], float)
    means = [np.asarray(unit(images[rows]), np.float64).mean(axis=0) for rows in self.rows if len(rows) > 1]
    self.mean_UD = np.zeros((len(self.rows), images[:1].shape[1]))
    self.mean_UD[self.count_U > 1] = means

  def sums(self, cluster_Q: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each cluster's sum of squares of relevant images around their list's mean (KDD), and its freedom (K)."""
    (items, width), lists = (len(self.images), self.mean_UD.shape[1]), len(self.rows)
    queries_KU = np.bincount(cluster_Q * lists + self.code_Q, minlength=number * lists).reshape(number, lists)
    queries_KU = queries_KU * (self.count_U > 1)
    listed_KN = np.zeros((number, items))
    for of_list_K, rows in zip(queries_KU.T, self.rows, strict=True):
      listed_KN[:, rows] += of_list_K[:, None]
    within_KDD = np.zeros((number, width, width))
    for first in range(0, items, CHUNK):
      x_ND = np.asarray(unit(self.images[first : first + CHUNK]), np.float64)
      for k in range(number):
        within_KDD[k] += (x_ND * listed_KN[k, first : first + CHUNK, None]).T @ x_ND
    for k in range(number):
      within_KDD[k] -= (self.mean_UD * (queries_KU[k] * self.count_U)[:, None]).T @ self.mean_UD
    return within_KDD, queries_KU @ np.maximum(self.count_U - 1, 0)


def _means(x_ND: np.ndarray, count_I: np.ndarray) -> np.ndarray:
  return np.add.reduceat(x_ND, np.cumsum(count_I) - count_I) / count_I[:, None]


def group_sums(x_ND: np.ndarray, code_N: np.ndarray, number: int) -> np.ndarray:
  """Returns the sum of the rows of each group (KD)."""
  return (code_N[None] == np.arange(number)[:, None]).astype(x_ND.dtype) @ x_ND


def scatter_around(x_ND: np.ndarray, code_N: np.ndarray, number: int) -> np.ndarray:
  """Returns the sum of squares (DD) of rows around the mean of their group, of so many groups."""
  mean_KD = group_sums(x_ND, code_N, number) / np.maximum(np.bincount(code_N, minlength=number), 1)[:, None]
  off_ND = x_ND - mean_KD[code_N]
  return off_ND.T @ off_ND


def lda_of(within_DD: np.ndarray) -> np.ndarray:
  """Returns the map (DD) after which a scatter within instances is about the same in all directions."""
  return inverse_root(within_DD * (len(within_DD) / np.trace(within_DD)), LDA_SHRINKAGE)
