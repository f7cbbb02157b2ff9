"""The network of the released QuARI checkpoints, as it computes, quirks and all; it has no dropout.

A step runs one shared encoder over [control + step code, left tokens, right tokens] and *adds* its output to tokens
that the encoder's residual stream already holds. Left and right tokens start equal, and nothing tells them apart: they
stay equal, which the shorter form uses. Our own `paper` and `adaptive` have neither quirk.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import normalise
from qat_jax.models.closed_forms import Untouched
from qat_jax.models.quari_files import ReleasedConfig
from qat_jax.models.tokens import PRODUCTS
from qat_jax.types import Adaptation

EPSILON = 1e-5  # of every layer norm
HIGHEST = jax.lax.Precision.HIGHEST


def step_codes(steps: int, hidden: int) -> np.ndarray:
  """Returns the sinusoidal code of each step (SH, float32): cosines, then sines."""
  rate = np.exp(-np.log(10000.0) * np.arange(hidden // 2) / (hidden // 2))
  angle = np.arange(steps)[:, None] * rate
  return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def position_codes(rank: int, hidden: int) -> np.ndarray:
  """Returns the sinusoidal code of positions 0 to R−1 (RH, float32): even columns sine, odd cosine."""
  angle = np.arange(rank)[:, None] * np.exp(-np.log(10000.0) * np.arange(0, hidden, 2) / hidden)
  return np.stack([np.sin(angle), np.cos(angle)], axis=2).reshape(rank, hidden).astype(np.float32)


def _gelu(x: jax.Array) -> jax.Array:
  return nn.gelu(x, approximate=False)


def _norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=EPSILON, name=name)


def _dense(width: int, dtype: str, name: str) -> nn.Dense:
  return nn.Dense(width, dtype=dtype, precision=HIGHEST if dtype == "float32" else None, name=name)


class Mlp(nn.Module):
  """Linear–GELU–Linear (…H → …width, float32)."""

  hidden: int
  width: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = _gelu(_dense(self.hidden, self.dtype, "in")(x))
    return _dense(self.width, self.dtype, "out")(x).astype(jnp.float32)


class EncoderLayer(nn.Module):
  """A pre-norm transformer layer; `counts_L` says how many equal tokens each one stands for."""

  heads: int
  dtype: str

  @nn.compact
  def __call__(self, token_QLH: jax.Array, counts_L: jax.Array) -> jax.Array:
    queries, length, hidden = token_QLH.shape
    precision = HIGHEST if self.dtype == "float32" else None
    packed = _dense(3 * hidden, self.dtype, "query_key_value")(_norm("norm_attention")(token_QLH))
    ask, key, value = jnp.moveaxis(packed.reshape(queries, length, 3, self.heads, hidden // self.heads), 2, 0)
    logits = jnp.einsum("qlhe,qmhe->qhlm", ask, key, precision=precision).astype(jnp.float32)
    logits = logits * (hidden // self.heads) ** -0.5 + jnp.log(counts_L)[None, None, None]
    weights = nn.softmax(logits, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("qhlm,qmhe->qlhe", weights, value, precision=precision).reshape(queries, length, hidden)
    token_QLH += _dense(hidden, self.dtype, "attention_out")(mixed).astype(jnp.float32)
    wide = _gelu(_dense(4 * hidden, self.dtype, "wide")(_norm("norm_feed_forward")(token_QLH)))
    return token_QLH + _dense(hidden, self.dtype, "narrow")(wide).astype(jnp.float32)


class Released(Untouched):
  """The released form: T = I + anchor_scale · left rightᵀ, q' between a decoded query and the query itself."""

  width: int
  hidden: int
  rank: int
  layers: int
  steps: int
  heads: int
  anchor_scale: float
  query_residual: float  # share of the query in q', before it is normalised
  frobenius_norm: bool  # whether each factor is divided by its Frobenius norm
  shared_tokens: bool = True  # R+1 tokens, exact since left and right are equal; False computes all 2R+1
  dtype: str = "float32"  # of the matrix products; bfloat16 is faster where the hardware has it
  remat: bool = False  # in training, as `Tokens` has it

  def setup(self) -> None:
    self.encode_in = _dense(self.hidden, self.dtype, "encode_in")
    self.norm_in = _norm("norm_in")
    self.encode_out = _dense(self.hidden, self.dtype, "encode_out")
    self.norm_out = _norm("norm_out")
    self.step = Mlp(self.hidden, self.hidden, self.dtype)
    layer = nn.remat(EncoderLayer, policy=PRODUCTS) if self.remat else EncoderLayer
    self.encoder = [layer(self.heads, self.dtype, name=f"layer_{i}") for i in range(self.layers)]
    self.query = Mlp(self.hidden, self.width, self.dtype)
    self.u = Mlp(self.hidden, self.width, self.dtype)
    self.v = Mlp(self.hidden, self.width, self.dtype)
    self.place = self.variable("constants", "place", lambda: jnp.asarray(position_codes(self.rank, self.hidden)))

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (QD, as the encoder gives them); in training the same."""
    tokens = self.refine(query_QD)
    # a row x becomes x (I + a U Vᵀ), so a column becomes (I + a V Uᵀ) x
    return Adaptation(
      query=self.decode(tokens[-1][:, 0], query_QD),
      gate=jnp.ones((query_QD.shape[0], 1), jnp.float32),
      left=self.anchor_scale * self.factor(self.v(tokens[-1][:, -self.rank :])),
      right=self.factor(self.u(tokens[-1][:, 1 : 1 + self.rank])),
    )

  def step_queries(self, query_QD: jax.Array) -> jax.Array:
    """Returns q' before the first step and after every one (SQD, S = steps + 1)."""
    return jnp.stack([self.decode(token_QLH[:, 0], query_QD) for token_QLH in self.refine(query_QD)])

  def refine(self, query_QD: jax.Array) -> list[jax.Array]:
    """Returns the tokens before the first step and after every one (QLH each, L = R+1 or 2R+1)."""
    copies = 1 if self.shared_tokens else 2
    place_LH = jnp.tile(self.place.value, (copies, 1))
    counts_L = jnp.asarray([1] + [2 // copies] * len(place_LH), jnp.float32)
    control_QH = self.norm_in(self.encode_in(query_QD).astype(jnp.float32))
    control_QH = self.norm_out(self.encode_out(_gelu(control_QH)).astype(jnp.float32))
    empty_QLH = jnp.zeros((query_QD.shape[0], *place_LH.shape), jnp.float32)
    tokens = [jnp.concatenate([control_QH[:, None], empty_QLH], axis=1)]
    for code_H in self.step(jnp.asarray(step_codes(self.steps, self.hidden))):
      refined_QLH = tokens[-1] + jnp.concatenate([code_H[None], place_LH])[None]
      for layer in self.encoder:
        refined_QLH = layer(refined_QLH, counts_L)
      tokens.append(tokens[-1] + refined_QLH)
    return tokens

  def decode(self, control_QH: jax.Array, query_QD: jax.Array) -> jax.Array:
    """Returns q' (QD, unit)."""
    return normalise((1 - self.query_residual) * self.query(control_QH) + self.query_residual * query_QD)

  def factor(self, column_QRD: jax.Array) -> jax.Array:
    """Returns one factor (QDR), divided by its Frobenius norm where the checkpoint says so."""
    factor_QDR = jnp.swapaxes(column_QRD, 1, 2)
    if not self.frobenius_norm:
      return factor_QDR
    return factor_QDR / (jnp.linalg.norm(factor_QDR, axis=(1, 2), keepdims=True) + 1e-8)


def settings(config: ReleasedConfig) -> dict:
  """Returns the keyword arguments of `Released`, but for its width, that a checkpoint's config asks for."""
  return {
    "hidden": config.hidden_dim,
    "rank": config.low_rank_dim,
    "layers": config.num_layers,
    "steps": config.num_steps,
    "heads": config.nhead,
    "anchor_scale": float(config.anchor_scale),
    "query_residual": float(config.query_residual_weight),
    "frobenius_norm": config.use_fro_norm,
  }


def shapes(config: ReleasedConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor that the checkpoint has to hold, by its name there."""
  d, h = config.embedding_dim, config.hidden_dim
  wanted = {"pos_emb": (2 * config.low_rank_dim + 1, h), "pos_scale": (1,)}
  for name, (out, into) in {
    "query_encoder.0": (h, d),
    "query_encoder.4": (h, h),
    "step_proj.0": (h, h),
    "step_proj.2": (h, h),
    **{f"{name}.0": (h, h) for name in ("query_decoder", "dec_u_img", "dec_v_img")},
    **{f"{name}.3": (d, h) for name in ("query_decoder", "dec_u_img", "dec_v_img")},
  }.items():
    wanted |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
  wanted |= {f"query_encoder.{i}.{part}": (h,) for i in (1, 5) for part in ("weight", "bias")}
  for i in range(config.num_layers):
    layer = f"transformer.layers.{i}"
    wanted |= {f"{layer}.self_attn.in_proj_weight": (3 * h, h), f"{layer}.self_attn.in_proj_bias": (3 * h,)}
    for name, (out, into) in {"self_attn.out_proj": (h, h), "linear1": (4 * h, h), "linear2": (h, 4 * h)}.items():
      wanted |= {f"{layer}.{name}.weight": (out, into), f"{layer}.{name}.bias": (out,)}
    wanted |= {f"{layer}.{norm}.{part}": (h,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
  return wanted


def variables(tensors: dict[str, np.ndarray], config: ReleasedConfig) -> dict:
  """Returns the variables of `Released` from a checkpoint's tensors.

  Raises ValueError that names missing and unknown tensors, or the first of another shape than the config says.
  """
  want = shapes(config)
  missing, unknown = sorted(want.keys() - tensors.keys()), sorted(tensors.keys() - want.keys())
  if missing or unknown:
    raise ValueError(f"weights.pt lacks {missing[:5]} and has unknown {unknown[:5]}; fetch it and config.yml again")
  for name, shape in want.items():
    if tensors[name].shape != shape:
      raise ValueError(f"weights.pt has {tensors[name].shape} for {name}, config.yml wants {shape}; they do not fit")

  def dense(name: str, weight: str = ".weight", bias: str = ".bias") -> dict:
    return {"kernel": np.ascontiguousarray(tensors[name + weight].T), "bias": tensors[name + bias]}

  def norm(name: str) -> dict:
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

  def layer(name: str) -> dict:
    return {
      "query_key_value": dense(f"{name}.self_attn.in_proj", "_weight", "_bias"),
      "attention_out": dense(f"{name}.self_attn.out_proj"),
      "wide": dense(f"{name}.linear1"),
      "narrow": dense(f"{name}.linear2"),
      "norm_attention": norm(f"{name}.norm1"),
      "norm_feed_forward": norm(f"{name}.norm2"),
    }

  params = {
    "encode_in": dense("query_encoder.0"),
    "norm_in": norm("query_encoder.1"),
    "encode_out": dense("query_encoder.4"),
    "norm_out": norm("query_encoder.5"),
    "step": {"in": dense("step_proj.0"), "out": dense("step_proj.2")},
    "query": {"in": dense("query_decoder.0"), "out": dense("query_decoder.3")},
    "u": {"in": dense("dec_u_img.0"), "out": dense("dec_u_img.3")},
    "v": {"in": dense("dec_v_img.0"), "out": dense("dec_v_img.3")},
    **{f"layer_{i}": layer(f"transformer.layers.{i}") for i in range(config.num_layers)},
  }
  place_RH = tensors["pos_scale"][0] * tensors["pos_emb"][: config.low_rank_dim]
  return {"params": params, "constants": {"place": place_RH}}
