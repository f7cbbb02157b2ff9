"""What training pairs near a query or an item say of it, and the forms that add it to another.

A training query t_i and an image v_i of its instance show how far a query like it has to move: the neighbour residual.
The captions t_i of the training images v_i nearest to an item say what such images are called. Nothing is trained; a
query costs O(M·D) for M pairs, and an item the same, once, offline.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, normalise, plain
from qat_jax.models.closed_forms import Untouched
from qat_jax.types import Adaptation

PAIRS = ("queries", "images")  # the names of a bank's halves among a form's constants
NEAREST = 16  # pairs that an item's captions are taken from
ROWS = 256  # items compared with a bank at once


class Bank(NamedTuple):
  """Training queries and, for each, an image of its instance (unit float32), or the mean of several."""

  query_MD: jax.Array
  image_MD: jax.Array


class Own(NamedTuple):
  """Whose the pairs and the queries are, as codes of instances: a query in training must not look up its own answer."""

  pair_M: jax.Array
  query_Q: jax.Array


def text_bank(texts: Any, images: Any) -> Bank:
  """Returns the bank of text queries: caption i belongs to image i."""
  return Bank(normalise(jnp.asarray(texts[:])), normalise(jnp.asarray(images[:])))


def image_bank(images: Any, instance_N: np.ndarray) -> Bank | None:
  """Returns the bank of image queries: beside each image the mean of its instance's others; None if there are none."""
  image_ND = np.asarray(normalise(jnp.asarray(images[:])))
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  total_ID = np.zeros((len(count), image_ND.shape[1]), np.float32)
  np.add.at(total_ID, code_N, image_ND)
  rows = np.flatnonzero(count[code_N] >= 2)
  if len(rows) == 0:
    return None
  others_MD = (total_ID[code_N[rows]] - image_ND[rows]) / (count[code_N[rows]] - 1)[:, None]
  return Bank(jnp.asarray(image_ND[rows]), jnp.asarray(others_MD))


def moved_by_pairs(
  bank: Bank,
  query_QD: jax.Array,
  temperature: jax.Array | float,
  scale: jax.Array | float,
  hidden_QM: jax.Array | None = None,
) -> jax.Array:
  """Returns unit queries q + scale · Σ softmax(cos(q, t_i) / temperature) (v_i − t_i) over the bank (QD, float32).

  `hidden_QM` says which pairs a query shall not look at: those of its own instance, where it is in training.
  """
  query_QD = normalise(query_QD)
  remembered_MD, image_MD = (jnp.asarray(half, jnp.float32) for half in bank)
  cosine_QM = jnp.matmul(query_QD, remembered_MD.T, precision=HIGHEST)
  if hidden_QM is not None:
    cosine_QM = jnp.where(hidden_QM, -jnp.inf, cosine_QM)
  weight_QM = jax.nn.softmax(cosine_QM / temperature, axis=1)
  return normalise(query_QD + scale * jnp.matmul(weight_QM, image_MD - remembered_MD, precision=HIGHEST))


def captions_of(
  bank: Bank, image_ND: jax.Array, mean_D: jax.Array, temperature: jax.Array | float, own: Own | None = None
) -> jax.Array:
  """Returns what training images like these are called: normalise(Σ softmax(v·v_i / temperature) t_i − mean t) (ND).

  The sum goes over the NEAREST pairs by image, which hold all of the weight that matters. `own` hides pairs.
  """
  caption_MD, remembered_MD = (jnp.asarray(half, jnp.float32) for half in bank)
  nearest = min(NEAREST, len(caption_MD))

  def block(image_BD: jax.Array, instance_B: jax.Array | None = None) -> jax.Array:
    cosine_BM = jnp.matmul(image_BD, remembered_MD.T, precision=HIGHEST)
    if own is not None and instance_B is not None:
      cosine_BM = jnp.where(instance_B[:, None] == own.pair_M[None], -jnp.inf, cosine_BM)
    cosine_BK, pair_BK = jax.lax.top_k(cosine_BM, nearest)
    weight_BK = jax.nn.softmax(cosine_BK / temperature, axis=1)
    called_BD = jnp.einsum("BK,BKD->BD", weight_BK, caption_MD[pair_BK], precision=HIGHEST)
    return normalise(called_BD - mean_D[None])

  return in_blocks(block, normalise(image_ND), *([] if own is None else [own.query_Q]))


def in_blocks(block: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """Returns what a function makes of rows, ROWS at a time: N × M numbers are never held.

  In a program for any number of rows (`qat_jax.sharing.programs`), all at once: their number is its caller's choice.
  """
  rows = arrays[0].shape[0]
  if jax.export.is_symbolic_dim(rows) or rows <= ROWS:
    return block(*arrays)
  spare = -rows % ROWS
  padded = [jnp.concatenate([x, jnp.repeat(x[-1:], spare, axis=0)]).reshape(-1, ROWS, *x.shape[1:]) for x in arrays]
  made = jax.lax.map(lambda x: block(*x), tuple(padded))
  return made.reshape(-1, *made.shape[2:])[:rows]


class Neighbours(Untouched):
  """The neighbour residual alone, q' = moved(q), T = I; the bank of M pairs and the two numbers are constants."""

  width: int
  pairs: int

  @nn.compact
  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q queries (any float dtype, QD)."""
    bank = Bank(*(self.variable("constants", name, jnp.zeros, (self.pairs, self.width)).value for name in PAIRS))
    numbers = (self.variable("constants", name, jnp.ones, ()).value for name in ("temperature", "scale"))
    return plain(moved_by_pairs(bank, query_QD, *numbers))


class Remembering(nn.Module):
  """Another form with M training pairs of a text and an image, or of two images, which it remembers on two sides.

  The query's side, where it `moves`: normalise(q' + weight · moved(q)); T stays. The item's side, where there are
  `captions`: [z, √share · c(z)], of unit length, c being `captions_of`; the query is widened alike, by
  normalise(q − mean t) where queries are texts ("text"), by its own captions where they are images ("image"). So the
  score is q'·z + share · c(q)·c(z), over 1 + share. T leaves the second half alone.

  The bank (half precision) and the numbers are constants; with weight 0 and without captions it is the other form. A
  collection "instances", of codes for `pairs` and `queries`, hides from every query the pairs of its own instance.
  """

  width: int
  head: nn.Module
  pairs: int
  moves: bool = True
  captions: str = ""

  def setup(self) -> None:
    shape = (self.pairs, self.width)
    self.bank = [self.variable("constants", name, jnp.zeros, shape, jnp.float16) for name in PAIRS]
    number = lambda name: self.variable("constants", name, jnp.ones, ())
    if self.moves:
      self.temperature, self.scale, self.weight = (number(name) for name in ("temperature", "scale", "weight"))
    if self.captions:
      self.share, self.item_temperature = number("share"), number("item_temperature")
      self.mean = self.variable("constants", "mean", jnp.zeros, (self.width,))

  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD)."""
    adaptation, bank, own = self.head(query_QD, train), self._bank(), None
    if self.has_variable("instances", "pairs"):
      own = Own(self.get_variable("instances", "pairs"), self.get_variable("instances", "queries"))
    if self.moves:
      hidden_QM = None if own is None else own.query_Q[:, None] == own.pair_M[None]
      moved_QD = moved_by_pairs(bank, query_QD, self.temperature.value, self.scale.value, hidden_QM)
      adaptation = adaptation.replace(query=normalise(adaptation.query + self.weight.value * moved_QD))
    if not self.captions:
      return adaptation
    if self.captions == "text":
      called_QD = normalise(normalise(query_QD) - self.mean.value[None])
    else:
      called_QD = captions_of(bank, query_QD, self.mean.value, self.item_temperature.value, own)
    return with_wider_query(adaptation, self._beside(adaptation.query, called_QD))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the unit items (float32) that the adaptation is for: the other form's, with captions D wider."""
    item_NE = self.head.prepare(gallery_ND)
    if not self.captions:
      return item_NE
    called_ND = captions_of(self._bank(), gallery_ND, self.mean.value, self.item_temperature.value)
    return self._beside(item_NE, called_ND)

  def _bank(self) -> Bank:
    return Bank(*(half.value for half in self.bank))

  def _beside(self, x_NE: jax.Array, called_ND: jax.Array) -> jax.Array:
    return normalise(jnp.concatenate([x_NE, jnp.sqrt(self.share.value) * called_ND], axis=1))


class Marked(nn.Module):
  """Another form with M kept marks: a query t_j, and h_j, which finds what was marked as right for it.

  q'' = normalise(q' + weight · T Σ w_j h_j / max(1, Σ w_j)), w_j = exp((cos(q, t_j) − 1) / temperature). So a query
  that is asked again is refined by its marks, and one that is far from all of them stays. T and the items stay.
  """

  width: int
  head: nn.Module
  pairs: int
  items: int

  @nn.compact
  def __call__(self, query_QD: jax.Array, train: bool = False) -> Adaptation:
    """Returns the adaptation of Q unit queries (any float dtype, QD)."""
    half = lambda name, width: self.variable("constants", name, jnp.zeros, (self.pairs, width), jnp.float16).value
    marked_MD, target_ME = (normalise(half(*one)) for one in (("queries", self.width), ("targets", self.items)))
    temperature, weight = (self.variable("constants", name, jnp.ones, ()).value for name in ("temperature", "weight"))
    adaptation = self.head(query_QD, train)
    cosine_QM = jnp.matmul(normalise(query_QD), marked_MD.T, precision=HIGHEST)
    weight_QM = jnp.exp((cosine_QM - 1) / temperature)
    mean_QE = jnp.matmul(weight_QM, target_ME, precision=HIGHEST) / jnp.maximum(weight_QM.sum(axis=1)[:, None], 1)
    along_QR = jnp.einsum("QE,QER->QR", mean_QE, adaptation.right, precision=HIGHEST)
    mapped_QE = adaptation.gate * mean_QE + jnp.einsum("QR,QER->QE", along_QR, adaptation.left, precision=HIGHEST)
    return adaptation.replace(query=normalise(adaptation.query + weight * mapped_QE))

  def prepare(self, gallery_ND: jax.Array) -> jax.Array:
    """Returns the other form's unit items."""
    return self.head.prepare(gallery_ND)


def with_wider_query(adaptation: Adaptation, query_QF: jax.Array) -> Adaptation:
  """Returns the adaptation with a wider unit query, of items that are as wide; T leaves the new dimensions alone.

  One gate for all dimensions serves the new ones too, so it must be 1, or T a multiple of the identity.
  """
  more = query_QF.shape[1] - adaptation.query.shape[1]
  wider = lambda x, value: jnp.pad(x, ((0, 0), (0, more), (0, 0))[: x.ndim], constant_values=value)
  gate = adaptation.gate if adaptation.gate.shape[1] == 1 else wider(adaptation.gate, 1)
  return adaptation.replace(query=query_QF, gate=gate, left=wider(adaptation.left, 0), right=wider(adaptation.right, 0))
