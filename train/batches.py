"""Batches as a pure function of (seed, step): a run that was killed draws the same ones again.

A pair is a query row and an image row of the same instance; the rows of a batch are of distinct instances. Where
queries list their relevant images, a pair is a query and one image of its list, and a batch has no query twice.
"""

from typing import Any, NamedTuple, cast

import jax
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.fit.training import Training
from qat_jax.types import Relevance, SemiPositives
from train.step import Batch


class TrainingPairs(NamedTuple):
  """Training images grouped by instance, or by query: `order[start[i]:start[i] + views[i]]` are right for group i."""

  order: np.ndarray  # positions in the training store
  start: np.ndarray
  views: np.ndarray
  other_image: bool  # the query is an image: its partner must be another row
  query: np.ndarray | None = None  # where queries have lists: the query row of each group, and all lists
  relevant: Relevance | None = None

  def __len__(self) -> int:
    return len(self.start)


def pairs_of(training: Training) -> TrainingPairs:
  """Returns the pairs of a training set: by the lists of its queries where there are lists, else by instance."""
  if training.relevant is None:
    return group(training.instance, training.query_type)
  count = np.array([len(one) for one in training.relevant.positives])
  start, query = np.cumsum(count) - count, np.flatnonzero(count)
  order = np.concatenate(training.relevant.positives)
  return TrainingPairs(order, start[query], count[query], False, query, training.relevant)


def group(instance_N: np.ndarray, query_type: str) -> TrainingPairs:
  """Returns the pairs to train `query_type` on; for image queries only instances with two images or more."""
  _, code_N = np.unique(instance_N, return_inverse=True)
  order = np.argsort(code_N, kind="stable")
  count = np.bincount(code_N)
  start = np.concatenate([[0], np.cumsum(count)[:-1]])
  enough = count >= (2 if query_type == "image" else 1)
  return TrainingPairs(order, start[enough], count[enough], query_type == "image")


def draw_pairs(pairs: TrainingPairs, size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns `size` pairs of distinct instances: query rows, image rows, instance numbers."""
  if size > len(pairs):
    there = "instances have a pair" if pairs.query is None else "queries have a list"
    raise ValueError(f"train.batch_size is {size}, but only {len(pairs)} {there} to train on; use at most {len(pairs)}")
  rng = np.random.Generator(np.random.Philox(key=[seed, step]))
  instance = rng.choice(len(pairs), size, replace=False)
  start, views = pairs.start[instance], pairs.views[instance]
  if pairs.query is not None:
    return pairs.query[instance], pairs.order[start + rng.integers(0, views)], instance
  query = rng.integers(0, views)
  image = (query + rng.integers(1, views)) % views if pairs.other_image else rng.integers(0, views)
  return pairs.order[start + query], pairs.order[start + image], instance


def share(
  rows: tuple[np.ndarray, np.ndarray, np.ndarray], part: int, parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns one of several equal parts of the drawn rows, in order."""
  query_row, image_row, instance = (np.split(one, parts)[part] for one in rows)
  return query_row, image_row, instance


def no_negatives(
  pairs: TrainingPairs, rows: tuple[np.ndarray, np.ndarray, np.ndarray], part: int, parts: int
) -> np.ndarray | None:
  """Returns which drawn images are no negatives of a part's drawn queries, since their lists have them too (QN).

  None where pairs go by instance: the loss sees that itself.
  """
  if pairs.relevant is None:
    return None
  query_row = np.split(rows[0], parts)[part]
  lists = [np.concatenate([pairs.relevant.positives[row], pairs.relevant.ignored[row]]) for row in query_row]
  item_M, (drawn_U, column_N) = np.concatenate(lists), np.unique(rows[1], return_inverse=True)
  place_M = np.searchsorted(drawn_U, item_M).clip(max=len(drawn_U) - 1)
  there_M = drawn_U[place_M] == item_M
  listed_QU = np.zeros((len(lists), len(drawn_U)), bool)
  listed_QU[np.repeat(np.arange(len(lists)), [len(one) for one in lists])[there_M], place_M[there_M]] = True
  return listed_QU[:, column_N]


def read_batch(
  rows: tuple[np.ndarray, np.ndarray, np.ndarray],
  queries: Any,
  images: Any,
  semi: SemiPositives | None,
  devices: int,
  listed_QN: np.ndarray | None = None,
) -> Batch:
  """Returns the batch of the drawn rows, split over devices ([devices, B, …], unit float32).

  Args:
    rows: query rows, image rows and instance numbers.
    queries, images: arrays or feature stores: anything that positions can index.
    semi: the semi-positives of the images, if any.
    devices: how many share the batch.
    listed_QN: what `no_negatives` returned.
  """
  query_row, image_row, instance = rows
  size, width = len(instance), images[:1].shape[1]
  if semi is None:
    semi_feature, semi_weight = np.zeros((size, 0, width), np.float32), np.zeros((size, 0), np.float32)
  else:
    ids, semi_weight = semi.ids[image_row], semi.weights[image_row]
    semi_feature = unit(images[np.maximum(ids, 0).reshape(-1)], np.float32).reshape(*ids.shape, width)
  query, image = unit(queries[query_row], np.float32), unit(images[image_row], np.float32)
  flat = Batch(query, image, instance.astype(np.int32), semi_feature, semi_weight, listed_QN)
  return cast(Batch, jax.tree.map(lambda x: x.reshape(devices, size // devices, *x.shape[1:]), flat))
