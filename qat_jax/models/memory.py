"""What training pairs near a query say of where its images lie: the neighbour residual, and a form that adds it.

A training query t_i and an image v_i of its instance show how far a query like it has to move. Nothing is trained; a
query costs O(M·D) for M pairs, and a gallery item nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, normalise, plain
from qat_jax.types import Adaptation

PAIRS = ("queries", "images")  # the names of a bank's halves among a form's constants


class Bank(NamedTuple):
  """Training queries and, for each, an image of its instance (unit float32), or the mean of several."""

  query_MD: jax.Array
  image_MD: jax.Array


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
  others_MD = (total_ID[code_N[rows]] - image_ND[rows]) / (count[code_N[rows]] - 1)[:, None]
  return Bank(jnp.asarray(image_ND[rows]), jnp.asarray(others_MD))


def moved(bank: Bank, query_QD: jax.Array, temperature: jax.Array | float, scale: jax.Array | float) -> jax.Array:
  """Returns unit queries q + scale · Σ softmax(cos(q, t_i) / temperature) (v_i − t_i) over the bank (QD, float32)."""
  query_QD = normalise(query_QD)
  remembered_MD, image_MD = bank.query_MD.astype(jnp.float32), bank.image_MD.astype(jnp.float32)
  cosine_QM = jnp.matmul(query_QD, remembered_MD.T, precision=HIGHEST)
  weight_QM = jax.nn.softmax(cosine_QM / temperature, axis=1)
  return normalise(query_QD + scale * jnp.matmul(weight_QM, image_MD - remembered_MD, precision=HIGHEST))


class Neighbours(nn.Module):
  """The neighbour residual alone, q' = moved(q), T = I; the bank of M pairs and the two numbers are constants."""

  width: int
  pairs: int

  @nn.compact
  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD)."""
    bank = Bank(*(self.variable("constants", name, jnp.zeros, (self.pairs, self.width)).value for name in PAIRS))
    numbers = (self.variable("constants", name, jnp.ones, ()).value for name in ("temperature", "scale"))
    return plain(moved(bank, query_QD, *numbers))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (ND, float32): the gallery is not touched."""
    return normalise(gallery_ND)


class Remembering(nn.Module):
  """Another form, its query and the remembered one in one vector: normalise(q' + weight · moved(q)); T stays.

  The bank of M pairs (half precision) and the three numbers are constants; with weight 0 it is the other form.
  """

  width: int
  head: nn.Module
  pairs: int

  @nn.compact
  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD)."""
    adaptation = self.head(query_QD, train)
    shape = (self.pairs, self.width)
    bank = Bank(*(self.variable("constants", name, jnp.zeros, shape, jnp.float16).value for name in PAIRS))
    temperature, scale, weight = (
      self.variable("constants", name, jnp.ones, ()).value for name in ("temperature", "scale", "weight")
    )
    return adaptation.replace(query=normalise(adaptation.query + weight * moved(bank, query_QD, temperature, scale)))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (ND, float32) that the adaptation is for: the other form's."""
    return self.head.prepare(gallery_ND)
