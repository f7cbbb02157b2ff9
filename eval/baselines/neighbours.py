"""The training-free neighbour residual: a query moves as training queries like it would have to, to reach their images.

A query costs O(M·D) for a bank of M training pairs, nothing a gallery item.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import qat_jax
from eval.baselines.types import Baseline, Gallery, Search, Train
from eval.ranking import ranked
from eval.validate import Validator
from qat_jax import hypernetwork
from qat_jax.adaptation import HIGHEST, normalise
from qat_jax.types import Ranking

TEMPERATURES = (0.01, 0.02, 0.035, 0.05, 0.1)
SCALES = (0.25, 0.5, 1.0, 1.5)
QUERY_BLOCK = 128


class Bank(NamedTuple):
  """Training queries and, for each, an image of its instance (unit float32)."""

  query_ND: jax.Array
  image_ND: jax.Array


def text_bank(texts: Any, images: Any) -> Bank:
  """Returns the bank of text queries: caption i belongs to image i."""
  return Bank(normalise(jnp.asarray(texts[:])), normalise(jnp.asarray(images[:])))


def image_bank(images: Any, instance_N: np.ndarray) -> Bank | None:
  """Returns the bank of image queries: beside each image the mean of its instance's others; None if there are none."""
  image_ND = np.asarray(normalise(jnp.asarray(images[:])))
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  total_ID = np.zeros((len(count), image_ND.shape[1]), np.float32)
  np.add.at(total_ID, code_N, image_ND)
  rows = np.flatnonzero(count[code_N] >= 2)
  if len(rows) == 0:
    return None
  others_ND = (total_ID[code_N[rows]] - image_ND[rows]) / (count[code_N[rows]] - 1)[:, None]
  return Bank(jnp.asarray(image_ND[rows]), jnp.asarray(others_ND))


def neighbour_residual(bank: Bank, query_QD: np.ndarray, temperature: float, scale: float) -> np.ndarray:
  """Returns unit queries q + scale · Σ softmax(cos(q, t_i)/temperature)(v_i − t_i) over the bank (QD, float32)."""
  blocks = [
    np.asarray(_residual(bank, jnp.asarray(query_QD[start : start + QUERY_BLOCK], jnp.float32), temperature, scale))
    for start in range(0, len(query_QD), QUERY_BLOCK)
  ]
  return np.concatenate(blocks)


def fit(train: Train, validator: Validator) -> Baseline | None:
  """Returns the neighbour residual, its temperature and scale tuned on validation.

  None for text queries without captions, and for image queries where no instance has two images.
  """
  if train.query_type == "image":
    bank = image_bank(train.images, train.instance)
  else:
    bank = None if train.texts is None else text_bank(train.texts, train.images)
  if bank is None:
    return None
  temperature, scale = tune_neighbours(bank, validator)

  def index(gallery: Gallery) -> Search:
    gallery_ND = normalise(jnp.asarray(gallery[:]))

    def search(query_QD: np.ndarray, k: int) -> Ranking:
      moved_QD = neighbour_residual(bank, query_QD, temperature, scale)
      return ranked(qat_jax.plain(jnp.asarray(moved_QD)), gallery_ND, k)

    return search

  note = f"temperature {temperature}, scale {scale}; keeps {len(bank.query_ND):,} training pairs"
  return Baseline(index, 0, 0.0, note)


def tune_neighbours(bank: Bank, validator: Validator) -> tuple[float, float]:
  """Returns the temperature and the scale that do best on validation."""
  module = hypernetwork.Plain(validator.query_QD.shape[1])

  def value(pair: tuple[float, float]) -> float:
    return validator.with_queries(neighbour_residual(bank, validator.query_QD, *pair))(module, {})

  return max(itertools.product(TEMPERATURES, SCALES), key=value)


@jax.jit
def _residual(bank: Bank, query_QD: jax.Array, temperature: float, scale: float) -> jax.Array:
  query_QD = normalise(query_QD)
  cosine_QN = jnp.matmul(query_QD, bank.query_ND.T, precision=HIGHEST)
  weight_QN = jax.nn.softmax(cosine_QN / temperature, axis=1)
  return normalise(query_QD + scale * jnp.matmul(weight_QN, bank.image_ND - bank.query_ND, precision=HIGHEST))
