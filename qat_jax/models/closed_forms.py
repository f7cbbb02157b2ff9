"""Forms that nothing trains: the frozen feature, and the maps that `qat_jax.fit` computes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, normalise, plain
from qat_jax.models.tokens import ZERO
from qat_jax.types import Adaptation


class Plain(nn.Module):
  """The frozen feature as it is: q' = q, T = I."""

  width: int

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD)."""
    return plain(query_QD)

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (ND, float32)."""
    return normalise(gallery_ND)


class ClosedForm(nn.Module):
  """q' = normalise(normalise((q − mean) A) + residual · q), all constants; `qat_jax.fit.discriminant` computes them."""

  width: int

  @nn.compact
  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD)."""
    query_QD = normalise(query_QD)
    mean_D = self.variable("constants", "mean", jnp.zeros, (self.width,)).value
    map_DE = self.variable("constants", "map", jnp.zeros, (self.width, self.width)).value
    residual = self.variable("constants", "residual", jnp.ones, ()).value
    changed_QD = normalise(jnp.matmul(query_QD - mean_D[None], map_DE, precision=HIGHEST))
    return plain(changed_QD + residual * query_QD)

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (ND, float32): the gallery is not touched."""
    return normalise(gallery_ND)


class AffineMap(nn.Module):
  """normalise((x − mean) · map + bias), x a unit row (…D → …E); a mean given takes the place of its own."""

  dimensions: int
  bias: bool

  @nn.compact
  def __call__(self, x_ND: jax.Array, mean_D: jax.Array | None = None) -> jax.Array:
    x_ND = normalise(x_ND)
    own_D = self.param("mean", ZERO, x_ND.shape[-1:])
    map_DE = self.param("map", ZERO, (x_ND.shape[-1], self.dimensions))
    mapped_NE = jnp.matmul(x_ND - (own_D if mean_D is None else mean_D)[None], map_DE, precision=HIGHEST)
    return normalise(mapped_NE + self.param("bias", ZERO, (self.dimensions,))[None] if self.bias else mapped_NE)


class Affine(nn.Module):
  """One affine map for queries and gallery, save that each side has a mean of its own; T = I.

  Items come out `dimensions` wide. What `qat_jax.fit` computes without a form of its own; see `affine_variables`.
  """

  width: int
  dimensions: int
  bias: bool = False

  def setup(self) -> None:
    self.query_mean = self.param("query_mean", ZERO, (self.width,))
    self.gallery_map = AffineMap(self.dimensions, self.bias)

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD)."""
    return plain(self.gallery_map(query_QD, self.query_mean))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (NE, float32) that the adaptation is for."""
    return self.gallery_map(gallery_ND)


def affine_variables(
  query_mean_D: np.ndarray, gallery_mean_D: np.ndarray, map_DE: np.ndarray, bias_E: np.ndarray | None = None
) -> dict:
  """Returns the variables of `Affine`, from arrays of any float type."""
  inner = {"mean": gallery_mean_D, "map": map_DE} | ({} if bias_E is None else {"bias": bias_E})
  params = {"query_mean": query_mean_D, "gallery_map": inner}
  return {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), "constants": {}}
