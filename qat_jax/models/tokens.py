"""A small transformer that turns a query into tokens, and tokens into the factors of its map.

After "QuARI: Query Adaptive Retrieval Improvement" (arXiv 2505.21647), section 3, with the corrections that the
docstrings name.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from qat_jax.models.dropout import Dropout

ZERO = nn.initializers.zeros


class Block(nn.Module):
  """A pre-norm transformer layer: attention, then a feed-forward part of four times the width."""

  heads: int
  dropout: float

  @nn.compact
  def __call__(self, token_QLH: jax.Array, train: bool) -> jax.Array:
    drop = Dropout(self.dropout)
    hidden = token_QLH.shape[-1]
    attention = nn.MultiHeadDotProductAttention(
      self.heads, dropout_rate=self.dropout, deterministic=not train, name="attention"
    )
    token_QLH += drop(attention(nn.LayerNorm(name="norm_attention")(token_QLH)), train)
    wide = nn.gelu(nn.Dense(4 * hidden, name="wide")(nn.LayerNorm(name="norm_feed_forward")(token_QLH)))
    return token_QLH + drop(nn.Dense(hidden, name="narrow")(wide), train)


class Tokens(nn.Module):
  """Refines a control token and R tokens for each factor over some steps; returns control (QH), left, right (QRH).

  One transformer encoder serves all steps. Unlike the published program, the two factors have embeddings of their own
  (equal ones would stay equal), and a step adds the encoder's change once.
  """

  rank: int
  hidden: int
  layers: int
  steps: int
  heads: int
  dropout: float

  @nn.compact
  def __call__(self, input_QD: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    control_QH = nn.Dense(self.hidden, name="encode_in")(input_QD)
    control_QH = nn.LayerNorm(name="encode_norm")(nn.Dense(self.hidden, name="encode_out")(nn.gelu(control_QH)))
    normal = nn.initializers.normal(1.0)
    place_LH = self.param("place", normal, (1 + 2 * self.rank, self.hidden))
    step_SH = self.param("step", normal, (self.steps, self.hidden))
    blocks = [Block(self.heads, self.dropout, name=f"block_{i}") for i in range(self.layers)]
    token_QLH = jnp.concatenate(
      [control_QH[:, None], jnp.zeros((input_QD.shape[0], 2 * self.rank, self.hidden), control_QH.dtype)], axis=1
    )
    for step in range(self.steps):
      refined_QLH = (
        token_QLH + place_LH[None] + jnp.pad(step_SH[step, None, None], ((0, 0), (0, 2 * self.rank), (0, 0)))
      )
      start_QLH = refined_QLH
      for block in blocks:
        refined_QLH = block(refined_QLH, train)
      token_QLH += refined_QLH - start_QLH
    token_QLH = nn.LayerNorm(name="norm")(token_QLH)
    return token_QLH[:, 0], token_QLH[:, 1 : 1 + self.rank], token_QLH[:, 1 + self.rank :]


class Factor(nn.Module):
  """Decodes tokens (QRH) to one factor of the map (QDR)."""

  width: int
  zero_start: bool

  @nn.compact
  def __call__(self, token_QRH: jax.Array) -> jax.Array:
    hidden_QRH = nn.gelu(nn.Dense(token_QRH.shape[-1], name="in")(token_QRH))
    last = ZERO if self.zero_start else nn.initializers.lecun_normal()
    return jnp.swapaxes(nn.Dense(self.width, kernel_init=last, name="out")(hidden_QRH), -1, -2) * self.width**-0.5
