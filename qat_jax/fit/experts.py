"""Experts for image queries: clusters of instances, each with a probabilistic LDA of its own, in closed form.

The rows are read in chunks of whole instances: once for the instances' means, which are clustered, and once for two
sums of squares a cluster, float64. Every setting of the shrinkage is made from these sums, without reading again.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit.clusters import SAMPLE, InstanceRows, RelevantLists, Sums, cluster, group_sums, lda_of, scatter_around
from qat_jax.fit.parts import beside
from qat_jax.fit.training import PLAIN, Training, covariance_of, evenly, mean_of_rows
from qat_jax.models.head import Head
from qat_jax.validation import Validator

FLOORS = (0.03, 0.001, 0.003, 0.01, 0.1, 0.3)  # s: added to a covariance within, times its mean variance
POOLED = (300.0, 30.0, 2000.0)  # λ: degrees of freedom that the mean of all clusters' covariances counts for
SPACES = ("raw", "lda")  # where instances are clustered
OUTSIDE = ((0.1, 0.0), (0.0, 0.0), (1.0, 0.0), (0.0, 3.0), (0.0, 30.0))  # alpha and beta: what is taken off strangers
NUMBERS = (16, 8, 4, 2, 32)  # of experts
GRID = {"floor": FLOORS, "pooled": POOLED, "space": SPACES, "outside": OUTSIDE, "number": NUMBERS}  # in this order
INTENTS = {"space": ("lda", "raw"), "number": sorted(NUMBERS), "pooled": (*POOLED, 10_000.0), "floor": FLOORS}
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


def fit_experts(training: Training, validator: Validator, base: Head = PLAIN) -> Head | None:
  """Returns experts on what `base` makes of items, as wide as features; the numbers are the best on validation.

  Queries with lists of relevant images get `intents`, on plain items. None where second views do not suffice.
  """
  if not suffices(training):
    return None
  if training.relevant is not None:
    return intents(training.queries, training.relevant.positives, training.images, validator)
  base = for_items(base, training.width)
  rows = InstanceRows(training.images, training.instance, base)
  numbers = [number for number in NUMBERS if number * FREEDOM <= rows.freedom]
  spaces = {"raw": np.eye(training.width), "lda": rows.lda()}
  sums = lambda number, space: rows.sums(number, spaces[space])
  return best_on_grid(sums, validator, base, GRID | {"number": numbers})


def for_items(base: Head, width: int) -> Head:
  """Returns a head without the variables that only its way with queries has, which experts do not take."""

  def those_of(wanted: Any, tree: Any) -> Any:
    return {name: those_of(one, tree[name]) for name, one in wanted.items()} if isinstance(wanted, dict) else tree

  if base is PLAIN:
    return base
  around = Head("experts", {"form": base.form, "settings": base.settings, "experts": 1}, {})
  wanted = {kind: tree.get("head", {}) for kind, tree in jax.eval_shape(lambda: around.initialise(width)).items()}
  return dataclasses.replace(base, variables=those_of(wanted, base.variables))


def intents(
  queries: Any,
  relevant: Sequence[np.ndarray],
  images: Any,
  validator: Validator,
  grid: dict[str, Sequence[Any]] = INTENTS,
) -> Head | None:
  """Returns experts for queries (QD) that each name the images (ND) that are relevant to them, by their rows.

  Clusters are the queries', taken again where the first ones are as wide in all directions, so that no query's looks
  outweigh its intent. There are few intents, so two clusters come first. Items have one mean and one covariance; those
  within are of relevant images around their mean, the freedom that of all images. None where relevant images do not
  suffice for two experts.
  """
  freedom = _freedom(relevant)
  if freedom < FREEDOM * min(NUMBERS):
    return None
  numbers = [number for number in grid["number"] if number * FREEDOM <= freedom]
  query_QD = np.asarray(unit(queries[:]), np.float64)
  mean_D = mean_of_rows(images)
  total_DD, item_MD = covariance_of(images, mean_D), unit(images[evenly(len(images), SAMPLE)])
  lists = RelevantLists(images, relevant)
  within_1DD, _ = lists.sums(np.zeros(len(relevant), int), 1)
  lda_DD = lda_of(within_1DD[0])

  def sums(number: int, space: str) -> Sums:
    first = cluster(query_QD, number, lda_DD if space == "lda" else np.eye(len(lda_DD)))
    clusters = cluster(query_QD, number, lda_of(scatter_around(query_QD, first.of(query_QD), number)))
    cluster_Q = clusters.of(query_QD)
    within_KDD, freedom_K = lists.sums(cluster_Q, number)
    share = min(1.0, len(images) / freedom_K.sum())  # an image is known once, in however many lists it is
    within_KDD, freedom_K = share * within_KDD, share * freedom_K
    count_K = np.bincount(cluster_Q, minlength=number)
    query_mean_KD = group_sums(query_QD, cluster_Q, number) / np.maximum(count_K, 1)[:, None]
    shared = lambda x: np.broadcast_to(x, (number, *np.shape(x)))
    some = evenly(len(query_QD), SAMPLE)
    total_KDD, number_K = shared(total_DD * len(images)), shared(np.float64(len(images)))
    known = (clusters, within_KDD, freedom_K, total_KDD, number_K, shared(mean_D), query_mean_KD)
    return Sums(*known, item_MD, None, query_QD[some], cluster_Q[some])

  return best_on_grid(sums, validator, PLAIN, grid | {"number": numbers})


def best_on_grid(sums: Any, validator: Validator, base: Head, grid: dict[str, Sequence[Any]]) -> Head:
  """Returns the head that is the best on validation, along one number of the grid after the other.

  `sums(number, space)` gives what clusters are known by; it is called once for each pair.
  """
  few = validator.subset(FEW)
  sums = functools.lru_cache(2)(sums)
  maps = functools.lru_cache(1)(lambda number, space, *shrinkage: maps_of(sums(number, space), *shrinkage))
  best = Setting(outside=grid.get("outside", ((0.0, 0.0),))[0])._replace(**{name: grid[name][0] for name in grid})
  head, reached = None, -1.0
  for name, values in grid.items():
    for setting in [best._replace(**{name: one}) for one in values[head is not None :]]:
      made = maps(setting.number, setting.space, setting.floor, setting.pooled)
      one = head_of(sums(setting.number, setting.space), made, base, setting)
      if (value := few(one)) > reached:
        best, head, reached = setting, one, value
  assert head is not None
  return head


class ExpertMaps(NamedTuple):
  """What experts see an item by (float64): coordinates, and variances along them."""

  map_KDD: np.ndarray
  ratio_KD: np.ndarray
  total_KD: np.ndarray
  offset_K: np.ndarray


def maps_of(sums: Sums, floor: float, pooled: float) -> ExpertMaps:
  """Returns the maps of clusters with a shrinkage.

  Vᵀ W V = I and Vᵀ T V = diag(1 + ℓ), W and T being an expert's covariances within instances and in all: `pooled`
  degrees of freedom of all clusters' are added to each, then `floor` times its mean variance to W.
  """
  number, width = sums.mean_KD.shape
  pooled_DD = sums.within_KDD.sum(axis=0) / sums.freedom_K.sum()
  spread_DD = sums.total_KDD.sum(axis=0) / sums.count_K.sum()
  map_KDD, (value_KD, log_K) = np.zeros((number, width, width)), (np.zeros((number, width)), np.zeros(number))
  for k in range(number):
    within_DD = (sums.within_KDD[k] + pooled * pooled_DD) / (sums.freedom_K[k] + pooled)
    total_DD = (sums.total_KDD[k] + pooled * spread_DD) / (sums.count_K[k] + pooled)
    within_DD += floor * np.trace(within_DD) / width * np.eye(width)
    lower_DD = np.linalg.cholesky(within_DD)
    whiten_DD, log_K[k] = np.linalg.inv(lower_DD), -np.log(np.diag(lower_DD)).sum()
    value_KD[k], vector_DD = np.linalg.eigh(whiten_DD @ total_DD @ whiten_DD.T)
    map_KDD[k] = whiten_DD.T @ vector_DD
  total_KD = np.maximum(value_KD, 1e-6)
  return ExpertMaps(map_KDD, np.maximum(value_KD - 1, 0), total_KD, log_K - np.log(total_KD).sum(axis=1) / 2)


def head_of(sums: Sums, maps: ExpertMaps, base: Head, setting: Setting) -> Head:
  """Returns the experts of clusters, which are known by such sums and maps."""
  number, (alpha, beta), clusters = setting.number, setting.outside, sums.clusters
  numbers: dict[str, Any] = {"mean": sums.mean_KD, "query_mean": sums.query_mean_KD, "alpha": alpha, "beta": beta}
  numbers |= {"direction": clusters.direction_KD, "bias": clusters.bias_K, "map": maps.map_KDD}
  numbers |= {"ratio": maps.ratio_KD, "total": maps.total_KD, "offset": maps.offset_K - maps.offset_K.max()}
  ones = {"high": maps.offset_K, "middle": maps.offset_K, "typical": 1.0, "longest": 1.0}  # until they are known
  numbers |= lengths(sums, numbers | ones)
  constants = {name: jnp.asarray(x, jnp.float32) for name, x in numbers.items()}
  note = f"{number} experts, clustered in the {setting.space} space, floor {setting.floor}, pooled {setting.pooled:g}"
  settings = {"form": base.form, "settings": base.settings, "experts": number}
  return Head("experts", settings, beside(base, constants), f"{note}, alpha {alpha:g}, beta {beta:g}")


def lengths(sums: Sums, found: dict[str, Any]) -> dict[str, Any]:
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
