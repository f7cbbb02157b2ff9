"""Items with captions in fewer numbers: projected on the directions that such items lie along, and the query alike."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from qat_jax.adaptation import HIGHEST, normalise
from qat_jax.types import Adaptation


class Projected(nn.Module):
  """Another form, its items, F = `items` wide, made E = `narrow` wide: normalise(P z), and the query normalise(P q').

  P are orthonormal directions (EF, float32, constants). The score is the inner product of the projected vectors, each
  of unit length again: items that lose more are not pushed back for it, which ranks better. T's factors are projected
  too, T = P T Pᵀ. Where nothing is left out, E = F, the scores are those of the other form.
  """

  width: int
  head: nn.Module
  items: int
  narrow: int

  def setup(self) -> None:
    self.directions = self.variable("constants", "directions", lambda: jnp.eye(self.narrow, self.items))

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD); the other form's gate must be one number."""
    adaptation, direction_EF = self.head(query_QD, train), self.directions.value
    factor = lambda x_QFR: jnp.einsum("QFR,EF->QER", x_QFR, direction_EF, precision=HIGHEST)
    query_QE = self._along(adaptation.query)
    return adaptation.replace(query=query_QE, left=factor(adaptation.left), right=factor(adaptation.right))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (NE, float32) that the adaptation is for."""
    return self._along(self.head.prepare(gallery_ND))

  def _along(self, x_NF: jax.Array) -> jax.Array:
    return normalise(jnp.matmul(x_NF, self.directions.value.T, precision=HIGHEST))
