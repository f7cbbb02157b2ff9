"""Query feature → Adaptation: the forms of the map, as Flax Linen modules.

Every form has two methods: `__call__(query_QD)` gives the `Adaptation`, and `prepare(gallery_ND)` the unit items z that
it is meant for. A form with a zero start begins exactly at the plain score, cosine(query, item).

After "QuARI: Query Adaptive Retrieval Improvement" (arXiv 2505.21647), section 3, with the corrections that the
docstrings name.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qat_jax.adaptation import normalise, plain
from qat_jax.models.closed_forms import Affine, ClosedForm, Plain, Plda
from qat_jax.models.dropout import Dropout
from qat_jax.models.ensemble import Ensemble
from qat_jax.models.experts import Experts
from qat_jax.models.levels import Levelled
from qat_jax.models.memory import Marked, Neighbours, Remembering
from qat_jax.models.projected import Projected
from qat_jax.models.quari import Released
from qat_jax.models.tokens import ZERO, Factor, Tokens
from qat_jax.types import Adaptation


class Linear(nn.Module):
  """normalise(x + W x + b) with W and b zero at the start; for queries or for the gallery (…D → …D, unit)."""

  @nn.compact
  def __call__(self, x_ND: jax.Array) -> jax.Array:
    x_ND = normalise(x_ND)
    return normalise(x_ND + nn.Dense(x_ND.shape[-1], kernel_init=ZERO, name="residual")(x_ND))


class Standardise(nn.Module):
  """(q − mean) / scale, constants of the training queries; set them with `with_statistics`."""

  @nn.compact
  def __call__(self, query_QD: jax.Array) -> jax.Array:
    width = query_QD.shape[-1]
    mean_D = self.variable("constants", "mean", jnp.zeros, (width,))
    scale = self.variable("constants", "scale", lambda: jnp.asarray(width**-0.5, jnp.float32))
    return (query_QD - mean_D.value[None]) / scale.value


class WideHead(nn.Module):
  """q' = normalise(q + 2/√D · (W₂ · dropout(LN(gelu(W₁ x + b₁))) + b₂)), W₂ and b₂ zero at the start.

  With `linear`, a zero-start linear map of q is added inside.
  """

  hidden: int
  dropout: float = 0.2
  linear: bool = False

  @nn.compact
  def __call__(self, query_QD: jax.Array, input_QD: jax.Array, train: bool) -> jax.Array:
    width = query_QD.shape[-1]
    hidden_QH = nn.LayerNorm(name="norm")(nn.gelu(nn.Dense(self.hidden, name="wide")(input_QD)))
    hidden_QH = Dropout(self.dropout)(hidden_QH, train)
    step_QD = 2 * width**-0.5 * nn.Dense(width, kernel_init=ZERO, name="out")(hidden_QH)
    if self.linear:
      step_QD += nn.Dense(width, kernel_init=ZERO, name="linear")(query_QD)
    return normalise(query_QD + step_QD)


class Hypernetwork(nn.Module):
  """A form with a zero start, put together from parts; see `adaptive`, `gated`, `query_only`, `static`."""

  width: int
  query_head: WideHead | None = None
  linear_query: bool = False  # a static linear map of the query, where there is no head
  tokens: Tokens | None = None
  gated: bool = False
  maps_gallery: bool = False

  def setup(self) -> None:
    self.standardise = Standardise()
    if self.linear_query:
      self.query_map = Linear()
    if self.gated:
      self.gate_in = nn.Dense(self.width)
      self.gate_out = nn.Dense(self.width, kernel_init=ZERO)
    if self.tokens is not None:
      self.left = Factor(self.width, zero_start=False)
      self.right = Factor(self.width, zero_start=True)
    if self.maps_gallery:
      self.gallery_map = Linear()

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD)."""
    query_QD = normalise(query_QD)
    input_QD = self.standardise(query_QD)
    adaptation = plain(query_QD)
    if self.query_head is not None:
      adaptation = adaptation.replace(query=self.query_head(query_QD, input_QD, train))
    if self.linear_query:
      adaptation = adaptation.replace(query=self.query_map(query_QD))
    if self.gated:
      adaptation = adaptation.replace(gate=1 + self.gate_out(nn.gelu(self.gate_in(input_QD))))
    if self.tokens is not None:
      _, left_QRH, right_QRH = self.tokens(input_QD, train)
      adaptation = adaptation.replace(left=self.left(left_QRH), right=self.right(right_QRH))
    return adaptation

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (ND, float32) that the adaptation is for: normalise(d + W d + b), or normalise(d)."""
    return self.gallery_map(gallery_ND) if self.maps_gallery else normalise(gallery_ND)


class Paper(nn.Module):
  """The published form: T = left @ rightᵀ alone, and q' decoded from the control token. No zero start."""

  width: int
  tokens: Tokens
  maps_gallery: bool = False

  def setup(self) -> None:
    self.standardise = Standardise()
    self.query_in = nn.Dense(self.tokens.hidden)
    self.query_out = nn.Dense(self.width)
    self.left = Factor(self.width, zero_start=False)
    self.right = Factor(self.width, zero_start=False)
    if self.maps_gallery:
      self.gallery_map = Linear()

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD)."""
    query_QD = normalise(query_QD)
    control_QH, left_QRH, right_QRH = self.tokens(self.standardise(query_QD), train)
    return Adaptation(
      query=normalise(self.query_out(nn.gelu(self.query_in(control_QH)))),
      gate=jnp.zeros((query_QD.shape[0], 1), jnp.float32),
      left=self.left(left_QRH),
      right=self.right(right_QRH),
    )

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (ND, float32) that the adaptation is for."""
    return self.gallery_map(gallery_ND) if self.maps_gallery else normalise(gallery_ND)


def static(width: int, maps_gallery: bool = True) -> Hypernetwork:
  """One linear map for all queries, and one for the gallery where it may be mapped."""
  return Hypernetwork(width, linear_query=True, maps_gallery=maps_gallery)


def query_only(
  width: int, hidden: int = 0, dropout: float = 0.2, maps_gallery: bool = False, linear: bool = False
) -> Hypernetwork:
  """A better query vector and no map: T = I. `hidden` 0 means 16 · width; `linear`: the head of `gated`, ungated."""
  return Hypernetwork(width, query_head=WideHead(hidden or 16 * width, dropout, linear), maps_gallery=maps_gallery)


def adaptive(
  width: int,
  hidden: int = 0,
  dropout: float = 0.2,
  maps_gallery: bool = False,
  rank: int = 8,
  token_hidden: int = 64,
  layers: int = 1,
  steps: int = 1,
) -> Hypernetwork:
  """The default: a wide residual query head, and T = I + left @ rightᵀ from a small token transformer."""
  tokens = Tokens(rank, token_hidden, layers, steps, heads=4, dropout=dropout)
  head = WideHead(hidden or 16 * width, dropout)
  return Hypernetwork(width, query_head=head, tokens=tokens, maps_gallery=maps_gallery)


def gated(width: int, hidden: int = 0, dropout: float = 0.2, maps_gallery: bool = True) -> Hypernetwork:
  """A gate on every dimension, T = diag(1 + c(q)), beside a wide query head with a linear map."""
  head = WideHead(hidden or 16 * width, dropout, linear=True)
  return Hypernetwork(width, query_head=head, gated=True, maps_gallery=maps_gallery)


def paper(
  width: int,
  rank: int = 64,
  token_hidden: int = 512,
  layers: int = 4,
  steps: int = 4,
  heads: int = 8,
  dropout: float = 0.1,
  maps_gallery: bool = False,
  zero_start: bool = False,
  dtype: str = "float32",
  remat: bool = False,
) -> Paper | Hypernetwork:
  """The published form at the published size by default: hidden 512, 4 layers, R = 64.

  With `zero_start` its tokens give T = I + left @ rightᵀ beside a static map of the query, and it begins at plain.
  """
  tokens = Tokens(rank, token_hidden, layers, steps, heads, dropout, dtype, remat)
  if zero_start:
    return Hypernetwork(width, linear_query=True, tokens=tokens, maps_gallery=maps_gallery)
  return Paper(width, tokens, maps_gallery)


def remembering(
  width: int, form: str, settings: dict, pairs: int, moves: bool = True, captions: str = ""
) -> Remembering:
  """Another form, with `pairs` training pairs that move its query, say what its items are called, or both."""
  return Remembering(width, FORMS[form](width, **settings), pairs, moves, captions)


def marked(width: int, form: str, settings: dict, pairs: int, items: int) -> Marked:
  """Another form, of items `items` wide, that remembers `pairs` kept marks of its queries."""
  return Marked(width, FORMS[form](width, **settings), pairs, items)


def projected(width: int, form: str, settings: dict, items: int, narrow: int) -> Projected:
  """Another form, whose items (`items` wide) are projected to be `narrow` wide."""
  return Projected(width, FORMS[form](width, **settings), items, narrow)


def experts(width: int, form: str, settings: dict, experts: int) -> Experts:
  """Another form, whose items and queries are served by one of so many experts."""
  return Experts(width, FORMS[form](width, **settings), experts)


def levelled(
  width: int, form: str, settings: dict, queries: int, items: int, nearest: int, sharpness: float = 0.0
) -> Levelled:
  """Another form, whose items (`items` wide) are levelled against hubs by what `queries` training queries score."""
  return Levelled(width, FORMS[form](width, **settings), queries, items, nearest, sharpness)


def ensemble(width: int, form: str, settings: dict, members: int) -> Ensemble:
  """The average of `members` heads of another form, which must leave the gallery untouched."""
  if settings.get("maps_gallery"):
    raise ValueError(
      f"heads of the form {form} that map the gallery each have items of their own; they have no average"
    )
  return Ensemble(width, tuple(FORMS[form](width, **settings) for _ in range(members)))


OWN = (static, query_only, adaptive, gated, paper, remembering, marked, projected, levelled, ensemble, experts)
FORMS = {f.__name__: f for f in OWN} | {
  "plain": Plain,
  "closed_form": ClosedForm,
  "affine": Affine,
  "plda": Plda,
  "neighbours": Neighbours,
  "released": Released,
}


def initialise(module: nn.Module, key: jax.Array) -> dict:
  """Returns the variables of a form: trained `params`, and `constants` such as the queries' mean."""
  row_1D = jnp.ones((1, module.width), jnp.float32)

  def both(form: nn.Module, row_1D: jax.Array) -> tuple[Adaptation, jax.Array]:
    return form(row_1D), form.prepare(row_1D)

  variables = dict(jax.jit(lambda key: module.init(key, row_1D, method=both))(key))
  return {"params": variables.get("params", {}), "constants": variables.get("constants", {})}


def with_statistics(constants: dict, query_ND: jax.Array) -> dict:
  """Returns the constants with the mean (D) and the scale (one number) of unit training queries in them."""
  query_ND = normalise(query_ND)
  mean_D = query_ND.mean(axis=0)
  scale = jnp.sqrt(jnp.mean(jnp.square(query_ND - mean_D[None])))
  return constants | {"standardise": {"mean": mean_D, "scale": jnp.maximum(scale, 1e-6)}}


def parameters(variables: dict) -> int:
  """Returns how many numbers the variables hold, trained or not."""
  return sum(x.size for x in jax.tree.leaves(variables))


def size_of_form(form: str, settings: dict, width: int) -> int:
  """Returns how many numbers a form's variables hold; none are made."""
  module = FORMS[form](width, **settings)
  return parameters(jax.eval_shape(lambda: initialise(module, jax.random.key(0))))


def hidden_of_size(target: int, width: int, form: str = "query_only", **settings: Any) -> int:
  """Returns the hidden units with which the number of parameters of a form comes closest to `target`."""
  one, two = (size_of_form(form, {"hidden": hidden, **settings}, width) for hidden in (1, 2))
  return max(1, round((target - one) / (two - one)) + 1)
