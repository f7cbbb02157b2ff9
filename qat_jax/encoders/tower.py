"""One transformer for images and texts: what differs between the families are a few named settings.

Dimension letters beside the project's: P pixels of a side, G places of the position table, C channels of a head; H is
heads here. Weights come from `weights.py`; the settings, of `settings.py`, from `families.py`.

`dtype` is what matrix products take. Their sums, the LayerNorms and the tokens between the layers are float32 always:
with bfloat16 there too the errors double, and the products are where the time goes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from qat_jax.encoders import positions
from qat_jax.encoders.settings import Layers, Text, Vision
from qat_jax.quicker import multiplies_faster

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
  "silu": nn.silu,
}
PART = 1024  # tokens
TRIED, GAIN = (512, 768, 768), 0.8  # the product that is timed: a layer's; and the share of float32's time to reach


class VisionTower(nn.Module):
  """Normalised pixels → pooled features (BD float32, not of unit length).

  Pixels are BPP3, any size of at least a patch. Where every picture has a grid of its own, `settings.patches` of its
  patches (BLP: pixel by pixel, row by row) with the grid's rows and columns (B2): what is beyond them is not looked at.
  """

  settings: Vision
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, pixels: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns the pooled features (BD)."""
    s, blocks = self.settings, self.settings.blocks
    patch_BLP, grid_B2 = pixels if isinstance(pixels, tuple) else cut_patches(pixels, s.patch)
    batch, length, _ = patch_BLP.shape
    # Rounded pixels cost more accuracy than all else that bfloat16 rounds, and this is 1% of the work.
    precision = "highest" if self.dtype == jnp.float32 else "high"
    x_BLD = nn.Dense(blocks.width, s.patch_bias, jnp.float32, precision=precision, name="patches")(patch_BLP)

    repeated = lambda x_LD: jnp.broadcast_to(x_LD, (batch, *x_LD.shape))
    before = []
    table_GD = self.param("position", _embedding, (s.classes + s.grid**2, blocks.width)) if s.table else None
    if table_GD is not None:
      x_BLD += positions.added(table_GD[s.classes :], s.grid, grid_B2, length, s.resampling)
    if s.classes:
      class_1D = self.param("class_token", _embedding, (1, blocks.width))
      before.append(repeated(class_1D if table_GD is None else class_1D + table_GD[:1]))
    if s.registers:
      before.append(repeated(self.param("registers", _embedding, (s.registers, blocks.width))))
    x_BLD = jnp.concatenate([*before, x_BLD], axis=1)
    first = x_BLD.shape[1] - length
    turn = blocks.rope and positions.turned(blocks.rope, blocks.width // blocks.heads, grid_B2, length, first)
    there_BL = None
    if not isinstance(grid_B2, tuple):
      there_BL = jnp.arange(first + length)[None] < first + grid_B2.prod(axis=1)[:, None]

    norm = functools.partial(_norm, blocks.epsilon)
    if s.pre_norm:
      x_BLD = norm("pre_norm")(x_BLD)
    for layer in range(blocks.layers):
      x_BLD = TowerBlock(blocks, self.dtype, name=f"block_{layer}")(x_BLD, turn, there_BL)
    if not s.norm_pooled:
      x_BLD = norm("post_norm")(x_BLD[:, :1] if s.pool == "class" else x_BLD)
    if s.pool == "class":
      x_BD = x_BLD[:, 0]
    elif s.pool == "mean":
      seen_BL = jnp.ones((batch, length)) if there_BL is None else there_BL[:, first:].astype(jnp.float32)
      x_BD = jnp.einsum("BLD,BL->BD", x_BLD[:, first:], seen_BL) / seen_BL.sum(axis=1)[:, None]
    else:
      probe_B1D = repeated(self.param("probe", _embedding, (1, blocks.width)))
      seen_B1D = TowerAttention(s.pooling, self.dtype, name="pool")(x_BLD, None, there_BL, probe_B1D)
      x_BD = (seen_B1D + TowerMlp(s.pooling, self.dtype, name="pool_mlp")(norm("pool_norm")(seen_B1D)))[:, 0]
    if s.norm_pooled:
      x_BD = norm("post_norm")(x_BD)
    if s.projection:
      return _dense(s.projection, self.dtype, "projection", s.projection_bias)(x_BD)
    return x_BD


def cut_patches(pixels_BPP3: Any, patch: int) -> tuple[Any, tuple[int, int]]:
  """Returns pictures of one size as patches, row by row (BLP), and how many rows and columns there are."""
  batch, (rows, columns) = len(pixels_BPP3), (side // patch for side in pixels_BPP3.shape[1:3])
  x = pixels_BPP3[:, : rows * patch, : columns * patch].reshape(batch, rows, patch, columns, patch, 3)
  return x.swapaxes(2, 3).reshape(batch, rows * columns, -1), (rows, columns)


class TextTower(nn.Module):
  """Token ids (BL, padded to the tower's length) → pooled features (BD float32, not of unit length).

  No mask: where attention is causal padding cannot matter, and SigLIP was trained with padding as part of the text.
  """

  settings: Text
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids_BL: jax.Array) -> jax.Array:
    """Returns the pooled features (BD)."""
    s, blocks = self.settings, self.settings.blocks
    words_WD = self.param("words", _embedding, (s.words, blocks.width))
    position_LD = self.param("position", _embedding, (s.tokens, blocks.width))
    x_BLD = words_WD[ids_BL] + position_LD[None, : ids_BL.shape[1]]
    for layer in range(blocks.layers):
      x_BLD = TowerBlock(blocks, self.dtype, name=f"block_{layer}")(x_BLD)
    if s.pool in ("last", "first"):
      x_BD = x_BLD[:, -1 if s.pool == "last" else 0]
    else:
      place_B = jnp.argmax(ids_BL if s.pool == "largest" else ids_BL == s.end, axis=1)
      x_BD = jnp.take_along_axis(x_BLD, place_B[:, None, None], axis=1)[:, 0]
    x_BD = _norm(blocks.epsilon, "post_norm")(x_BD)
    return _dense(s.projection, self.dtype, "projection", s.projection_bias)(x_BD) if s.projection else x_BD


def in_parts(tower: nn.Module, params: Any, items: Any, tokens: int) -> jax.Array:
  """Returns a tower's features of a batch, an array or a tuple of them, each item of `tokens` tokens (BD).

  CPUs take a few items after another, so many that what lies between two layers stays in their caches.
  """
  rows = len(jax.tree.leaves(items)[0])
  part = max((size for size in range(1, rows + 1) if rows % size == 0 and size * tokens <= PART), default=1)

  def whole(params: Any, items: Any) -> Any:
    return tower.apply({"params": params}, items)

  def mapped(params: Any, items: Any) -> jax.Array:
    parts = jax.tree.map(lambda x: x.reshape(rows // part, part, *x.shape[1:]), items)
    return jax.lax.map(functools.partial(whole, params), parts).reshape(rows, -1)

  return jax.lax.platform_dependent(params, items, cpu=mapped, default=whole)


class TowerBlock(nn.Module):
  """One layer: attention and an MLP, each behind a LayerNorm and added to what came in."""

  settings: Layers
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array, turn: Any = None, there_BL: jax.Array | None = None) -> jax.Array:
    """Returns what leaves the layer (BLD); `turn` and `there_BL` are as `Attention` takes them."""
    s = self.settings
    norm = functools.partial(_norm, s.epsilon)
    attention = functools.partial(TowerAttention(s, self.dtype, name="attention"), turn=turn, there_BL=there_BL)
    for number, part in ((1, attention), (2, TowerMlp(s, self.dtype, name="mlp"))):
      change_BLD = part(norm(f"norm{number}")(x_BLD))
      if s.layer_scale:
        change_BLD *= self.param(f"scale{number}", nn.initializers.ones, (s.width,))[None, None]
      x_BLD += change_BLD
    return x_BLD


class TowerAttention(nn.Module):
  """Every token looks at all, or at those up to itself; with a probe, the probe alone looks at all."""

  settings: Layers
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, turn: Any = None, there_BL: jax.Array | None = None, probe_BLD: jax.Array | None = None
  ) -> jax.Array:
    """Returns what the tokens, or the probe, have seen (BLD).

    `turn` is what `positions.turned` gives; tokens that `there_BL` denies are not looked at.
    """
    s, asking = self.settings, 0 if probe_BLD is None else probe_BLD.shape[1]
    if probe_BLD is not None:
      x_BLD = jnp.concatenate([probe_BLD, x_BLD], axis=1)
    batch, length, _ = x_BLD.shape
    qkv = _dense(3 * s.width, self.dtype, "qkv")(x_BLD).reshape(batch, length, 3, s.heads, s.width // s.heads)
    query, key, value = (qkv[:, :, i] for i in range(3))
    if asking:
      query, key, value = query[:, :asking], key[:, asking:], value[:, asking:]
    if s.rope and turn is not None:
      query, key = (positions.turn(s.rope, x, turn) for x in (query, key))
    attend = functools.partial(_attend, causal=s.causal, dtype=self.dtype)
    # CPUs are two to ten times faster at one image after another, which stays in their caches.
    one_by_one = lambda *qkv: jax.lax.map(lambda each: attend(*each), qkv)
    known = () if there_BL is None else (there_BL,)
    seen_BLHC = jax.lax.platform_dependent(query, key, value, *known, cpu=one_by_one, default=jax.vmap(attend))
    return _dense(s.width, self.dtype, "out")(seen_BLHC.reshape(batch, -1, s.width))


def _attend(
  query_LHC: jax.Array,
  key_MHC: jax.Array,
  value_MHC: jax.Array,
  there_M: jax.Array | None = None,
  *,
  causal: bool,
  dtype: jnp.dtype,
) -> jax.Array:
  """Returns what the tokens of one image or text see of each other (LHC)."""
  query_HLC, key_HMC, value_HMC = (x.swapaxes(0, 1) for x in (query_LHC, key_MHC, value_MHC))
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  scores = functools.partial(product, "HLC,HMC->HLM")
  score_HLM = _summed_in_float32(scores, query_HLC * query_HLC.shape[-1] ** -0.5, key_HMC, dtype=dtype)
  if causal:
    score_HLM = jnp.where(np.tri(len(query_LHC), dtype=bool), score_HLM, -jnp.inf)
  if there_M is not None:
    score_HLM = jnp.where(there_M[None, None], score_HLM, -jnp.inf)
  means = functools.partial(product, "HLM,HMC->HLC")
  seen_HLC = _summed_in_float32(means, nn.softmax(score_HLM, axis=-1), value_HMC, dtype=dtype)
  return seen_HLC.swapaxes(0, 1)


class TowerMlp(nn.Module):
  """Two dense layers."""

  settings: Layers
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    """Returns the change of every token (BLD)."""
    s, activation = self.settings, ACTIVATIONS[self.settings.activation]
    if s.gated:
      gate_BLH, x_BLH = jnp.split(_dense(2 * s.feed_forward, self.dtype, "up")(x_BLD), 2, axis=-1)
      return _dense(s.width, self.dtype, "down")(activation(gate_BLH) * x_BLH)
    return _dense(s.width, self.dtype, "down")(activation(_dense(s.feed_forward, self.dtype, "up")(x_BLD)))


def _summed_in_float32(product: Callable[..., jax.Array], *factors: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Returns a product of factors rounded to `dtype`, its sums float32; float32 factors are not rounded anywhere."""
  if dtype == jnp.float32:
    return product(*factors, precision="highest")  # accelerators round them otherwise
  as_they_are = lambda *factors: product(*(x.astype(dtype) for x in factors))
  if jax.default_backend() == "cpu" and multiplies_faster("bfloat16", "float32", TRIED, GAIN):
    return as_they_are(*factors)
  # other CPUs write such products out in float32, or XLA cannot do them there
  rounded = lambda *factors: product(*(jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7) for x in factors))
  return jax.lax.platform_dependent(*factors, cpu=rounded, default=as_they_are)


def _dense(width: int, dtype: jnp.dtype, name: str, bias: bool = True) -> nn.Dense:
  def product(left: jax.Array, right: jax.Array, dimensions: Any, **_: Any) -> jax.Array:
    dot = lambda left, right, precision=None: jax.lax.dot_general(
      left, right, dimensions, precision, preferred_element_type=jnp.float32
    )
    return _summed_in_float32(dot, left, right, dtype=dtype)

  return nn.Dense(width, use_bias=bias, dtype=jnp.float32, dot_general=product, name=name)


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


# Towers as narrow as the demo's learn nothing for hundreds of steps from the published start of 0.01 or 0.02.
_embedding = nn.initializers.normal(0.3)
