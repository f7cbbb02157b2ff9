"""Experts for image queries: clusters of instances, each with a probabilistic LDA of its own, in closed form.

The rows are read in chunks of whole instances: once for the instances' means, which are clustered, and once for two
sums of squares a cluster, float64. Every setting of the shrinkage is made from these sums, without reading again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit.clusters import SAMPLE, Rows, Sums, cluster, group_sums, lda_of, relevant_sums
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
FEW = 1000  # validation queries that the grid is compared on
HIGHEST, LONGEST = 99.9, 99.0  # percentiles of what is taken off, and of the query's length


class Setting(NamedTuple):
  """What validation chooses."""

  floor: float = FLOORS[0]
  pooled: float = POOLED[0]
  space: str = SPACES[0]
  outside: tuple[float, float] = OUTSIDE[0]
  number: int = NUMBERS[0]


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
  within_1DD, _ = relevant_sums(images, relevant, np.zeros(len(relevant), int), 1)
  lda_DD = lda_of(within_1DD[0])

  def sums(number: int, space: str) -> Sums:
    clusters = cluster(query_QD, number, lda_DD if space == "lda" else np.eye(len(lda_DD)))
    cluster_Q = clusters.of(query_QD)
    within_KDD, freedom_K = relevant_sums(images, relevant, cluster_Q, number)
    count_K = np.bincount(cluster_Q, minlength=number)
    query_mean_KD = group_sums(query_QD, cluster_Q, number) / np.maximum(count_K, 1)[:, None]
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


def _freedom(relevant: Sequence[np.ndarray]) -> int:
  return sum(max(len(rows) - 1, 0) for rows in relevant)
