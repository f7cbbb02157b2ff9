"""Forms that nothing trains: the frozen feature, and the maps that `qat_jax.fit` computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, TINY, normalise, plain
from qat_jax.models.tokens import ZERO
from qat_jax.types import Adaptation

GREATEST = 0.999  # of an item's length, what `rest` leaves at least


class Untouched(nn.Module):
  """A form that leaves the gallery alone."""

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (ND, float32)."""
    return normalise(gallery_ND)


class Plain(Untouched):
  """The frozen feature as it is: q' = q, T = I."""

  width: int

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD)."""
    return plain(query_QD)


class ClosedForm(Untouched):
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


class QuadraticMap(nn.Module):
  """Unit rows x as [y, scale · (centre − ½ Σ weight · y²), rest], y = (x − mean) · map.

  All over `longest`, so that every row comes out of unit length: `rest` makes up what is missing, and a longer row is
  shortened to GREATEST of it (ND → NF, F = D + 2).
  """

  @nn.compact
  def __call__(self, x_ND: jax.Array, quadratic: bool) -> jax.Array:
    """Returns items, or queries [y, 1 / scale, 0], of unit length, where the square is left out."""
    x_ND = normalise(x_ND)
    width = x_ND.shape[-1]
    mean_D, map_DD = self.param("mean", ZERO, (width,)), self.param("map", ZERO, (width, width))
    weight_D = self.param("weight", ZERO, (width,))
    scale, centre, longest = (self.param(name, nn.initializers.ones, ()) for name in ("scale", "centre", "longest"))
    y_ND = jnp.matmul(x_ND - mean_D[None], map_DD, precision=HIGHEST)
    if not quadratic:
      one_N1 = jnp.ones((y_ND.shape[0], 1), jnp.float32)
      return normalise(jnp.concatenate([y_ND, one_N1 / scale, 0 * one_N1], axis=1))
    off_N1 = scale * (centre - jnp.sum(weight_D[None] * jnp.square(y_ND), axis=1, keepdims=True) / 2)
    return with_rest(jnp.concatenate([y_ND, off_N1], axis=1) / longest)


def with_rest(row_NE: jax.Array) -> jax.Array:
  """Returns rows of unit length, one number wider: what is missing, GREATEST being the most of a row that is kept."""
  length_N1 = jnp.linalg.norm(row_NE, axis=1, keepdims=True)
  row_NE *= jnp.minimum(1, GREATEST / jnp.maximum(length_N1, TINY))
  rest_N1 = jnp.sqrt(1 - jnp.sum(jnp.square(row_NE), axis=1, keepdims=True))
  return normalise(jnp.concatenate([row_NE, rest_N1], axis=1))


class Plda(nn.Module):
  """Probabilistic LDA: how much likelier two images are of one instance than of two, as one inner product; T = I.

  An image is its instance's place plus its own deviation, both normal, with covariances B and W. In coordinates where W
  is I and B diagonal, λ, the log likelihood ratio of a query x and an item z is, but for what depends on x alone,
  Σ p·x·z − ½ p·λ/(1 + λ)·z² with p = λ / (1 + 2λ). `qat_jax.fit.discriminant` computes the map. After Ioffe,
  "Probabilistic Linear Discriminant Analysis" (ECCV 2006).
  """

  width: int

  def setup(self) -> None:
    self.gallery_map = QuadraticMap()

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD), two dimensions wider."""
    return plain(self.gallery_map(query_QD, quadratic=False))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (NF, float32, F = D + 2) that the adaptation is for."""
    return self.gallery_map(gallery_ND, quadratic=True)

  def whole(self, query_QD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns numbers (two Q): a score of a query times the first, plus the second, is the log likelihood ratio."""
    constants = self.gallery_map.variables["params"]
    weight_D = constants["weight"]  # λ / (1 + λ)
    ratio_D = weight_D / jnp.maximum(1 - weight_D, TINY)
    y_QD = jnp.matmul(normalise(query_QD) - constants["mean"][None], constants["map"], precision=HIGHEST)
    times_Q = jnp.sqrt(jnp.sum(jnp.square(y_QD), axis=1) + jnp.square(1 / constants["scale"])) * constants["longest"]
    alone_Q = likelihood_alone(ratio_D) - jnp.sum(weight_D[None] * jnp.square(y_QD), axis=1) / 2
    return times_Q, alone_Q - constants["centre"]


def likelihood_alone(ratio_D: jax.Array) -> jax.Array:
  """Returns what of PLDA's log likelihood ratio depends on neither query nor item: Σ log(1 + λ) − ½ log(1 + 2λ)."""
  return jnp.sum(jnp.log1p(ratio_D) - jnp.log1p(2 * ratio_D) / 2, axis=-1)


def affine_variables(
  query_mean_D: np.ndarray, gallery_mean_D: np.ndarray, map_DE: np.ndarray, bias_E: np.ndarray | None = None
) -> dict:
  """Returns the variables of `Affine`, from arrays of any float type."""
  inner = {"mean": gallery_mean_D, "map": map_DE} | ({} if bias_E is None else {"bias": bias_E})
  params = {"query_mean": query_mean_D, "gallery_map": inner}
  return {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), "constants": {}}
