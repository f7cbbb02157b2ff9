"""The training-free neighbour residual: a query moves as training queries like it would have to, to reach their images.

A query costs O(M·D) for a bank of M training pairs, nothing a gallery item.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import qat_jax
from eval.baselines.types import Baseline, Gallery, Search, Train
from eval.ranking import ranked
from qat_jax.adaptation import normalise
from qat_jax.models import forms as hypernetwork
from qat_jax.models.memory import Bank, image_bank, moved, text_bank
from qat_jax.types import Ranking
from qat_jax.validation import Validator

TEMPERATURES = (0.01, 0.02, 0.035, 0.05, 0.1)
SCALES = (0.25, 0.5, 1.0, 1.5)
QUERY_BLOCK = 128


def neighbour_residual(bank: Bank, query_QD: np.ndarray, temperature: float, scale: float) -> np.ndarray:
  """Returns unit queries q + scale · Σ softmax(cos(q, t_i)/temperature)(v_i − t_i) over the bank (QD, float32)."""
  blocks = [
    np.asarray(_moved(bank, jnp.asarray(query_QD[start : start + QUERY_BLOCK], jnp.float32), temperature, scale))
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

  note = f"temperature {temperature}, scale {scale}; keeps {len(bank.query_MD):,} training pairs"
  return Baseline(index, 0, 0.0, note)


def tune_neighbours(bank: Bank, validator: Validator) -> tuple[float, float]:
  """Returns the temperature and the scale that do best on validation."""
  module = hypernetwork.Plain(validator.query_QD.shape[1])

  def value(pair: tuple[float, float]) -> float:
    return validator.with_queries(neighbour_residual(bank, validator.query_QD, *pair))(module, {})

  return max(itertools.product(TEMPERATURES, SCALES), key=value)


_moved = jax.jit(moved)
