"""A small transformer that turns a query into tokens, and tokens into the factors of its map.

After "QuARI: Query Adaptive Retrieval Improvement" (arXiv 2505.21647), section 3, with the corrections that the
docstrings name.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from qat_jax.models.dropout import Dropout, kept_mask

ZERO = nn.initializers.zeros
PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable  # what is kept of a layer: not attention's scores


class Projection(nn.Module):
  """The kernel (HGE) and bias (GE) of Flax's `DenseGeneral` from H numbers to G heads of E, as it begins them."""

  heads: int

  @nn.compact
  def __call__(self, hidden: int) -> tuple[jax.Array, jax.Array]:
    shape = (hidden, self.heads, hidden // self.heads)
    flat = lambda key, shape: nn.initializers.lecun_normal()(key, (hidden, hidden)).reshape(shape)
    return self.param("kernel", flat, shape), self.param("bias", ZERO, shape[1:])


class Attention(nn.Module):
  """Self-attention with the parameters of Flax's, by one product for queries, keys and values."""

  heads: int
  dropout: float
  dtype: str = "float32"  # of the products

  @nn.compact
  def __call__(self, token_QLH: jax.Array, train: bool) -> jax.Array:
    hidden, length = token_QLH.shape[-1], token_QLH.shape[-2]
    parts = [Projection(self.heads, name=name)(hidden) for name in ("query", "key", "value")]
    kernel_HPGE, bias_PGE = jnp.stack([one[0] for one in parts], axis=1), jnp.stack([one[1] for one in parts])
    token_QLH, kernel_HPGE, bias_PGE = (x.astype(self.dtype) for x in (token_QLH, kernel_HPGE, bias_PGE))
    packed_QLPGE = jnp.einsum("QLH,HPGE->QLPGE", token_QLH, kernel_HPGE) + bias_PGE[None, None]
    ask_QLGE, key_QLGE, value_QLGE = jnp.moveaxis(packed_QLPGE, 2, 0)
    logit_QGLM = jnp.einsum("QLGE,QMGE->QGLM", ask_QLGE * (hidden // self.heads) ** -0.5, key_QLGE)
    weight_QGLM = nn.softmax(logit_QGLM.astype(jnp.float32))
    if train and self.dropout:  # the same for all heads
      mask_LM = kept_mask(self.make_rng("dropout"), (length, length), self.dropout)
      weight_QGLM = jnp.where(mask_LM[None, None], weight_QGLM / (1 - self.dropout), 0)
    mixed_QLGE = jnp.einsum("QGLM,QMGE->QLGE", weight_QGLM.astype(self.dtype), value_QLGE)
    return nn.DenseGeneral(hidden, axis=(-2, -1), dtype=self.dtype, name="out")(mixed_QLGE)


class Block(nn.Module):
  """A pre-norm transformer layer: attention, then a feed-forward part of four times the width."""

  heads: int
  dropout: float
  dtype: str = "float32"

  @nn.compact
  def __call__(self, token_QLH: jax.Array, train: bool) -> jax.Array:
    drop = Dropout(self.dropout)
    hidden = token_QLH.shape[-1]
    attended = Attention(self.heads, self.dropout, self.dtype, name="attention")(
      nn.LayerNorm(name="norm_attention")(token_QLH), train
    )
    token_QLH += drop(attended, train)
    normal_QLH = nn.LayerNorm(name="norm_feed_forward")(token_QLH)
    wide = nn.gelu(nn.Dense(4 * hidden, dtype=self.dtype, name="wide")(normal_QLH))
    return token_QLH + drop(nn.Dense(hidden, dtype=self.dtype, name="narrow")(wide), train)


class Tokens(nn.Module):
  """Refines a control token and R tokens for each factor over some steps; returns control (QH), left, right (QRH).

  One transformer encoder serves all steps. Unlike the published program, the two factors have embeddings of their own
  (equal ones would stay equal), and a step adds the encoder's change once.

  On an accelerator `dtype` bfloat16 takes the layers' products in half precision, and `remat` keeps of each layer its
  products alone for the backward pass, so that larger batches fit: the same numbers, the rest being computed twice.
  """

  rank: int
  hidden: int
  layers: int
  steps: int
  heads: int
  dropout: float
  dtype: str = "float32"
  remat: bool = False

  @nn.compact
  def __call__(self, input_QD: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    control_QH = nn.Dense(self.hidden, name="encode_in")(input_QD)
    control_QH = nn.LayerNorm(name="encode_norm")(nn.Dense(self.hidden, name="encode_out")(nn.gelu(control_QH)))
    normal = nn.initializers.normal(1.0)
    place_LH = self.param("place", normal, (1 + 2 * self.rank, self.hidden))
    step_SH = self.param("step", normal, (self.steps, self.hidden))
    layer = nn.remat(Block, policy=PRODUCTS, static_argnums=(2,)) if self.remat else Block
    token_QLH = jnp.concatenate(
      [control_QH[:, None], jnp.zeros((input_QD.shape[0], 2 * self.rank, self.hidden), control_QH.dtype)], axis=1
    )

    def refined(_: nn.Module, token_QLH: jax.Array, step_H: jax.Array) -> tuple[jax.Array, None]:
      start_QLH = refined_QLH = token_QLH + place_LH[None] + jnp.pad(step_H[None], ((0, 2 * self.rank), (0, 0)))[None]
      for i in range(self.layers):
        refined_QLH = layer(self.heads, self.dropout, self.dtype, name=f"block_{i}")(refined_QLH, train)
      return token_QLH + refined_QLH - start_QLH, None

    if self.steps == 1 or self.is_initializing():  # of all steps' parameters; an unchecked loop makes none
      token_QLH, _ = refined(self, token_QLH, step_SH[0])
    else:  # a loop, so that the program is no longer for more steps
      loop = nn.scan(
        refined,
        variable_broadcast="params",
        split_rngs={"params": False, "dropout": True},
        check_constancy_invariants=train,  # jax2onnx cannot read the check; without it dropout would draw otherwise
      )
      token_QLH, _ = loop(self, token_QLH, step_SH)
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
