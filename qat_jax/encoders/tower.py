"""One transformer for images and texts: what differs between CLIP, SigLIP and DINOv2 are a few named settings.

Dimension letters beside the project's: P pixels of a side, G places of the position table, C channels of a head; H is
heads here. Weights come from `weights.py`; the settings from `families.py`.

`dtype` is what matrix products take. Their sums, the LayerNorms and the tokens between the layers are float32 always:
with bfloat16 there too the errors double, and the products are where the time goes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from qat_jax.encoders.positions import resample

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
  "swiglu": lambda x: nn.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :],
}


PART = 1024  # tokens


@dataclasses.dataclass(frozen=True)
class Blocks:
  """A stack of pre-norm transformer layers."""

  width: int
  layers: int
  heads: int
  feed_forward: int  # what the second dense layer of an MLP takes; swiglu's first gives twice that
  activation: str  # one of ACTIVATIONS
  epsilon: float  # of every LayerNorm in the tower
  causal: bool = False
  layer_scale: bool = False  # a learned factor a channel after attention and after the MLP


@dataclasses.dataclass(frozen=True)
class Vision:
  """An image tower."""

  blocks: Blocks
  patch: int  # side, pixels
  grid: int  # side of the position table
  pool: str  # "class": a class token; "attention": a learned probe looks at all tokens
  projection: int = 0  # width of the feature; 0: the tower's own, not projected
  patch_bias: bool = True
  pre_norm: bool = False  # a LayerNorm before the first layer
  registers: int = 0  # tokens without position that are thrown away
  antialias: bool = False  # how the position table is resampled for images of another size

  @property
  def width(self) -> int:
    """Returns the width of the feature."""
    return self.projection or self.blocks.width

  @property
  def tokens(self) -> int:
    """Returns how many tokens an image of the table's size has."""
    return int(self.pool == "class") + self.registers + self.grid**2


@dataclasses.dataclass(frozen=True)
class Text:
  """A text tower."""

  blocks: Blocks
  words: int
  tokens: int
  pool: str  # "largest": where the largest id stands; "end": at the first end token; "last": the last position
  projection: int
  end: int = 0
  projection_bias: bool = False

  @property
  def width(self) -> int:
    """Returns the width of the feature."""
    return self.projection


class VisionTower(nn.Module):
  """Normalised pixels (BPP3, any size of at least a patch) → pooled features (BD float32, not of unit length)."""

  settings: Vision
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, pixels_BPP3: jax.Array) -> jax.Array:
    """Returns the pooled features (BD)."""
    s, blocks = self.settings, self.settings.blocks
    rows, columns = (side // s.patch for side in pixels_BPP3.shape[1:3])
    batch = len(pixels_BPP3)
    x = pixels_BPP3[:, : rows * s.patch, : columns * s.patch]
    x = x.reshape(batch, rows, s.patch, columns, s.patch, 3).swapaxes(2, 3).reshape(batch, rows * columns, -1)
    # Rounded pixels cost more accuracy than all else that bfloat16 rounds, and this is 1% of the work.
    precision = "highest" if self.dtype == jnp.float32 else "high"
    x_BLD = nn.Dense(blocks.width, s.patch_bias, jnp.float32, precision=precision, name="patches")(x)

    classes = int(s.pool == "class")
    position_GD = self.param("position", _embedding, (classes + s.grid**2, blocks.width))
    x_BLD += resample(position_GD[classes:], s.grid, (rows, columns), s.antialias)[None]
    repeated = lambda x_LD: jnp.broadcast_to(x_LD, (batch, *x_LD.shape))
    before = []
    if classes:
      before.append(repeated(self.param("class_token", _embedding, (1, blocks.width)) + position_GD[:1]))
    if s.registers:
      before.append(repeated(self.param("registers", _embedding, (s.registers, blocks.width))))
    x_BLD = jnp.concatenate([*before, x_BLD], axis=1)

    norm = functools.partial(_norm, blocks.epsilon)
    if s.pre_norm:
      x_BLD = norm("pre_norm")(x_BLD)
    for layer in range(blocks.layers):
      x_BLD = Block(blocks, self.dtype, name=f"block_{layer}")(x_BLD)
    if classes:
      x_BD = norm("post_norm")(x_BLD[:, 0])
    else:
      x_BLD = norm("post_norm")(x_BLD)
      probe_B1D = repeated(self.param("probe", _embedding, (1, blocks.width)))
      x_B1D = Attention(blocks, self.dtype, name="pool")(x_BLD, probe_B1D)  # the probe itself is not added
      x_B1D += Mlp(blocks, self.dtype, name="pool_mlp")(norm("pool_norm")(x_B1D))
      x_BD = x_B1D[:, 0]
    if s.projection:
      x_BD = _dense(s.projection, self.dtype, "projection", bias=False)(x_BD)
    return x_BD


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
      x_BLD = Block(blocks, self.dtype, name=f"block_{layer}")(x_BLD)
    if s.pool == "last":
      x_BD = x_BLD[:, -1]
    else:
      place_B = jnp.argmax(ids_BL if s.pool == "largest" else ids_BL == s.end, axis=1)
      x_BD = jnp.take_along_axis(x_BLD, place_B[:, None, None], axis=1)[:, 0]
    x_BD = _norm(blocks.epsilon, "post_norm")(x_BD)
    return _dense(s.projection, self.dtype, "projection", s.projection_bias)(x_BD)


def in_parts(tower: nn.Module, params: Any, items: jax.Array, tokens: int) -> jax.Array:
  """Returns a tower's features of a batch, each item of `tokens` tokens (BD).

  CPUs take a few items after another, so many that what lies between two layers stays in their caches.
  """
  rows = len(items)
  part = max((size for size in range(1, rows + 1) if rows % size == 0 and size * tokens <= PART), default=1)

  def whole(params: Any, items: jax.Array) -> Any:
    return tower.apply({"params": params}, items)

  def mapped(params: Any, items: jax.Array) -> jax.Array:
    parts = items.reshape(rows // part, part, *items.shape[1:])
    return jax.lax.map(functools.partial(whole, params), parts).reshape(rows, -1)

  return jax.lax.platform_dependent(params, items, cpu=mapped, default=whole)


class Block(nn.Module):
  """One layer: attention and an MLP, each behind a LayerNorm and added to what came in."""

  settings: Blocks
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    """Returns what leaves the layer (BLD)."""
    s = self.settings
    norm = functools.partial(_norm, s.epsilon)
    for number, part in ((1, Attention(s, self.dtype, name="attention")), (2, Mlp(s, self.dtype, name="mlp"))):
      change_BLD = part(norm(f"norm{number}")(x_BLD))
      if s.layer_scale:
        change_BLD *= self.param(f"scale{number}", nn.initializers.ones, (s.width,))[None, None]
      x_BLD += change_BLD
    return x_BLD


class Attention(nn.Module):
  """Every token looks at all, or at those up to itself; with a probe, the probe alone looks at all."""

  settings: Blocks
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array, probe_BLD: jax.Array | None = None) -> jax.Array:
    """Returns what the tokens, or the probe, have seen (BLD)."""
    s, asking = self.settings, 0 if probe_BLD is None else probe_BLD.shape[1]
    if probe_BLD is not None:
      x_BLD = jnp.concatenate([probe_BLD, x_BLD], axis=1)
    batch, length, _ = x_BLD.shape
    qkv = _dense(3 * s.width, self.dtype, "qkv")(x_BLD).reshape(batch, length, 3, s.heads, s.width // s.heads)
    query, key, value = (qkv[:, :, i] for i in range(3))
    if asking:
      query, key, value = query[:, :asking], key[:, asking:], value[:, asking:]
    attend = functools.partial(_attend, causal=s.causal, dtype=self.dtype)
    # CPUs are two to ten times faster at one image after another, which stays in their caches.
    one_by_one = lambda *qkv: jax.lax.map(lambda each: attend(*each), qkv)
    seen_BLHC = jax.lax.platform_dependent(query, key, value, cpu=one_by_one, default=jax.vmap(attend))
    return _dense(s.width, self.dtype, "out")(seen_BLHC.reshape(batch, -1, s.width))


def _attend(
  query_LHC: jax.Array, key_MHC: jax.Array, value_MHC: jax.Array, causal: bool, dtype: jnp.dtype
) -> jax.Array:
  """Returns what the tokens of one image or text see of each other (LHC)."""
  query_HLC, key_HMC, value_HMC = (x.swapaxes(0, 1) for x in (query_LHC, key_MHC, value_MHC))
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  scores = functools.partial(product, "HLC,HMC->HLM")
  score_HLM = _summed_in_float32(scores, query_HLC * query_HLC.shape[-1] ** -0.5, key_HMC, dtype=dtype)
  if causal:
    score_HLM = jnp.where(np.tri(len(query_LHC), dtype=bool), score_HLM, -jnp.inf)
  means = functools.partial(product, "HLM,HMC->HLC")
  seen_HLC = _summed_in_float32(means, nn.softmax(score_HLM, axis=-1), value_HMC, dtype=dtype)
  return seen_HLC.swapaxes(0, 1)


class Mlp(nn.Module):
  """Two dense layers."""

  settings: Blocks
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    """Returns the change of every token (BLD)."""
    s = self.settings
    hidden = 2 * s.feed_forward if s.activation == "swiglu" else s.feed_forward
    x_BLH = ACTIVATIONS[s.activation](_dense(hidden, self.dtype, "up")(x_BLD))
    return _dense(s.width, self.dtype, "down")(x_BLH)


def _summed_in_float32(product: Callable[..., jax.Array], *factors: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Returns a product of factors rounded to `dtype`, its sums float32; float32 factors are not rounded anywhere."""
  if dtype == jnp.float32:
    return product(*factors, precision="highest")  # accelerators round them otherwise
  as_they_are = lambda *factors: product(*(x.astype(dtype) for x in factors))
  # XLA of early 2025 cannot do this on CPUs, and a later one is no faster.
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
