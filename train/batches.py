"""Batches as a pure function of (seed, step): a run that was killed draws the same ones again.

A pair is a query row and an image row of the same instance; the rows of a batch are of distinct instances.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qat_jax.adaptation import unit
from qat_jax.types import SemiPositives
from train.step import Batch


class Pairs(NamedTuple):
  """Training rows grouped by instance: rows `order[start[i]:start[i] + views[i]]` show instance i."""

  order: np.ndarray  # positions in the training store
  start: np.ndarray
  views: np.ndarray
  other_image: bool  # the query is an image: its partner must be another row

  def __len__(self) -> int:
    return len(self.start)


def group(instance_N: np.ndarray, query_type: str) -> Pairs:
  """Returns the pairs to train `query_type` on; for image queries only instances with two images or more."""
  _, code_N = np.unique(instance_N, return_inverse=True)
  order = np.argsort(code_N, kind="stable")
  count = np.bincount(code_N)
  start = np.concatenate([[0], np.cumsum(count)[:-1]])
  enough = count >= (2 if query_type == "image" else 1)
  return Pairs(order, start[enough], count[enough], query_type == "image")


def draw(pairs: Pairs, size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns `size` pairs of distinct instances: query rows, image rows, instance numbers."""
  if size > len(pairs):
    raise ValueError(
      f"train.batch_size is {size}, but only {len(pairs)} instances have a pair to train on; use at most {len(pairs)}"
    )
  rng = np.random.Generator(np.random.Philox(key=[seed, step]))
  instance = rng.choice(len(pairs), size, replace=False)
  start, views = pairs.start[instance], pairs.views[instance]
  query = rng.integers(0, views)
  image = (query + rng.integers(1, views)) % views if pairs.other_image else rng.integers(0, views)
  return pairs.order[start + query], pairs.order[start + image], instance


def share(
  rows: tuple[np.ndarray, np.ndarray, np.ndarray], part: int, parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns one of several equal parts of the drawn rows, in order."""
  query_row, image_row, instance = (np.split(one, parts)[part] for one in rows)
  return query_row, image_row, instance


def read(
  rows: tuple[np.ndarray, np.ndarray, np.ndarray], queries: Any, images: Any, semi: SemiPositives | None, devices: int
) -> Batch:
  """Returns the batch of the drawn rows, split over devices ([devices, B, …], unit float32).

  `queries` and `images` are arrays or feature stores: anything that positions can index.
  """
  query_row, image_row, instance = rows
  size, width = len(instance), images[:1].shape[1]
  if semi is None:
    semi_feature, semi_weight = np.zeros((size, 0, width), np.float32), np.zeros((size, 0), np.float32)
  else:
    ids, semi_weight = semi.ids[image_row], semi.weights[image_row]
    semi_feature = unit(images[np.maximum(ids, 0).reshape(-1)], np.float32).reshape(*ids.shape, width)
  query, image = unit(queries[query_row], np.float32), unit(images[image_row], np.float32)
  flat = Batch(query, image, instance.astype(np.int32), semi_feature, semi_weight)
  return Batch(*(x.reshape(devices, size // devices, *x.shape[1:]) for x in flat))
