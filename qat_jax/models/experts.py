"""Experts: a map that the query chooses, in closed form.

Each of K experts is a probabilistic LDA of one cluster of the training images. A query is served by the expert whose
centre is nearest. An item is looked at by every expert: what expert k takes off its scores, s_k, is one number. So an
item is K + 1 numbers wider, and the score stays one inner product. `qat_jax.fit.experts` computes the experts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from qat_jax.adaptation import HIGHEST, normalise, plain
from qat_jax.models.closed_forms import likelihood_alone, with_rest
from qat_jax.models.memory import in_blocks
from qat_jax.types import Adaptation

FLOOR = -50.0  # of the logarithm of a posterior: beyond it an item is in no way of the cluster


class Experts(nn.Module):
  """Another form, and K experts on its items x (width D, T is not used); its query is prepared as an item is.

  Expert k has coordinates y = (x − mean_k) · map_k in which images of one instance have covariance I, and instances
  the diagonal covariance ℓ_k (`ratio`). With p = ℓ / (1 + 2ℓ) and r = ℓ / (1 + ℓ), and c the query's expert,

      w = map_c diag(p_c) map_cᵀ (q − query_mean_c)
      s_k = ½ Σ p_k r_k y² − alpha · log P(k | x) − beta · [the nearest centre is k's]
      items [x, −(min(s_k, high_k) − middle_k) / typical for each k, rest] / longest
      queries normalise([w, typical · e_c, 0])

  P(k | x) is the posterior of Gaussians with variances `total` along y; `offset` holds their logarithms' constants.
  Items are of unit length: `rest` makes up for what is missing, and a longer row is shortened. The nearest centre is
  that with the greatest x · direction_k + bias_k.
  """

  width: int
  head: nn.Module
  experts: int

  def setup(self) -> None:
    zeros = lambda name, *shape: self.variable("constants", name, jnp.zeros, (self.experts, *shape))
    ones = lambda name, *shape: self.variable("constants", name, jnp.ones, shape)
    self.mean, self.query_mean = zeros("mean", self.width), zeros("query_mean", self.width)
    self.direction, self.bias = zeros("direction", self.width), zeros("bias")
    self.map, self.ratio = zeros("map", self.width, self.width), zeros("ratio", self.width)
    self.total, self.offset = ones("total", self.experts, self.width), zeros("offset")
    self.alpha, self.beta = (self.variable("constants", name, jnp.zeros, ()) for name in ("alpha", "beta"))
    self.high, self.middle = ones("high", self.experts), zeros("middle")
    self.typical, self.longest = ones("typical"), ones("longest")

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD), K + 1 dimensions wider."""
    mean_KD, map_KDD, ratio_KD = (jnp.asarray(one.value) for one in (self.query_mean, self.map, self.ratio))
    weight_KD = ratio_KD / (1 + 2 * ratio_KD)

    def one(x_D: jax.Array, expert: jax.Array) -> jax.Array:
      map_DD = map_KDD[expert]
      y_D = jnp.matmul(x_D - mean_KD[expert], map_DD, precision=HIGHEST)
      return jnp.matmul(map_DD, weight_KD[expert] * y_D, precision=HIGHEST)

    x_QD = self.head.prepare(query_QD)
    expert_Q = jnp.argmax(self._nearness(x_QD), axis=1)
    # One query after the other, so that no map is copied for each. Programs for any number of queries go through all
    # experts and keep the query's own: the converter to ONNX has no such loop, and no gather of maps.
    if jax.export.is_symbolic_dim(x_QD.shape[0]):
      off_QKD = x_QD[:, None] - mean_KD[None]
      y_QKE = self._one_hot(expert_Q)[:, :, None] * jnp.einsum("QKD,KDE->QKE", off_QKD, map_KDD, precision=HIGHEST)
      w_QD = jnp.einsum("QKE,KDE->QD", weight_KD[None] * y_QKE, map_KDD, precision=HIGHEST)
    else:
      w_QD = jax.lax.map(lambda each: one(*each), (x_QD, expert_Q))
    one_QK = self.typical.value * self._one_hot(expert_Q)
    return plain(normalise(jnp.concatenate([w_QD, one_QK, 0 * one_QK[:, :1]], axis=1)))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (NF, float32, F = D + K + 1) that the adaptation is for."""

    def block(x_BD: jax.Array) -> jax.Array:
      off_BK = jnp.minimum(self.taken_off(x_BD), self.high.value[None]) - self.middle.value[None]
      return with_rest(jnp.concatenate([x_BD, -off_BK / self.typical.value], axis=1) / self.longest.value)

    return in_blocks(block, self.head.prepare(gallery_ND))

  def taken_off(self, x_ND: jax.Array) -> jax.Array:
    """Returns s (NK), what each expert takes off the scores of prepared rows x."""

    def one(expert: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
      mean_D, map_DD, ratio_D, total_D, offset = expert
      square_ND = jnp.square(jnp.matmul(x_ND - mean_D[None], map_DD, precision=HIGHEST))
      weight_D = jnp.square(ratio_D) / ((1 + 2 * ratio_D) * (1 + ratio_D))
      half_N = jnp.sum(weight_D[None] * square_ND, axis=1) / 2
      return half_N, offset - jnp.sum(square_ND / total_D[None], axis=1) / 2

    of_each = (self.mean, self.map, self.ratio, self.total, self.offset)
    # one expert after the other: N × K × D numbers are never held
    half_KN, density_KN = jax.lax.map(one, tuple(variable.value for variable in of_each))
    posterior_NK = jnp.maximum(jax.nn.log_softmax(density_KN.T, axis=1), FLOOR)
    crisp_NK = self._one_hot(jnp.argmax(self._nearness(x_ND), axis=1))
    return half_KN.T - self.alpha.value * posterior_NK - self.beta.value * crisp_NK

  def whole(self, query_QD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns numbers (two Q): a score of a query times the first, plus the second, is the log likelihood ratio."""
    mean_KD, map_KDD, ratio_KD = (jnp.asarray(one.value) for one in (self.query_mean, self.map, self.ratio))

    def one(each: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      x_D, expert = each
      ratio_D, map_DD = ratio_KD[expert], map_KDD[expert]
      y_D = jnp.matmul(x_D - mean_KD[expert], map_DD, precision=HIGHEST)
      weight_D = ratio_D / (1 + 2 * ratio_D)
      w_D = jnp.matmul(map_DD, weight_D * y_D, precision=HIGHEST)
      square = jnp.sum(weight_D * ratio_D / (1 + ratio_D) * jnp.square(y_D)) / 2
      item_mean_D, middle = jnp.take(self.mean.value, expert, axis=0), jnp.take(self.middle.value, expert)
      plus = likelihood_alone(ratio_D) - square - jnp.sum(w_D * item_mean_D) - middle
      return jnp.sqrt(jnp.sum(jnp.square(w_D)) + jnp.square(self.typical.value)) * self.longest.value, plus

    x_QD = self.head.prepare(query_QD)
    return jax.lax.map(one, (x_QD, jnp.argmax(self._nearness(x_QD), axis=1)))

  def expert(self, query_QD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the number of the expert that serves each query (Q), and its cosine with the mean of those images (Q)."""
    x_QD = self.head.prepare(query_QD)
    expert_Q = jnp.argmax(self._nearness(x_QD), axis=1)
    return expert_Q, jnp.sum(x_QD * normalise(jnp.take(self.query_mean.value, expert_Q, axis=0)), axis=1)

  def _nearness(self, x_ND: jax.Array) -> jax.Array:
    return jnp.matmul(x_ND, self.direction.value.T, precision=HIGHEST) + self.bias.value[None]

  def _one_hot(self, expert_N: jax.Array) -> jax.Array:
    return (expert_N[:, None] == jnp.arange(self.experts)[None]).astype(jnp.float32)
